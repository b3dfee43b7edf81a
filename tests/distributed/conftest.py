"""One local Ray for all of these tests."""

import os
from collections.abc import Iterator

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ.pop("RAY_ADDRESS", None)

import pytest
import ray

from processes import below, is_running, wait_for

CPUS = 2


@pytest.fixture(scope="package", autouse=True)
def local_ray() -> Iterator[None]:
    others = below(os.getpid())
    ray.init(
        "local",
        num_cpus=CPUS,
        object_store_memory=80 << 20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="warning",
    )
    yield
    started = below(os.getpid()) - others
    ray.shutdown()
    wait_for(lambda: not any(map(is_running, started)))
