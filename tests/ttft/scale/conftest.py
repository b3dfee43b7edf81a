"""One local Ray for all of these tests, and a datastore that one process indexed."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import pytest
import ray

from hullft_ops.ttft import Source, index_corpus, load_embedder
from on_ray import CPUS, EMBEDDER, TEXTS, text, threads
from processes import below, is_running, wait_for


@pytest.fixture(scope="package", autouse=True)
def local_ray() -> Iterator[None]:
    """Processes that the tests start find it only where they are told to."""
    os.environ.pop("RAY_ADDRESS", None)
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


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 functions, which make four batches."""
    file = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    file.write_text("".join(json.dumps({"text": text(n)}) + "\n" for n in range(TEXTS)))
    return file


@pytest.fixture(scope="session")
def store(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Indexed by this process, with one thread."""
    path = tmp_path_factory.mktemp("alone") / "store"
    with threads(1):
        index_corpus(Source(corpus), path, load_embedder(EMBEDDER))
    return path
