"""What an import costs and brings, and what the binary says of itself."""

import importlib.metadata
import json
import subprocess
import sys

import pytest

import hullft_ops
from hullft_ops import _C

IMPORT = """
import json, sys, time
import torch
before, start = set(sys.modules), time.process_time()
import hullft_ops
seconds = time.process_time() - start
print(json.dumps({"seconds": seconds, "new": sorted(set(sys.modules) - before)}))
"""


def import_in_a_new_process() -> dict[str, object]:
    result = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, check=True)
    return dict(json.loads(result.stdout))


def test_import_brings_torch_alone() -> None:
    top_level = {str(name).partition(".")[0] for name in import_in_a_new_process()["new"]}
    brought = {name for name in top_level if name not in sys.stdlib_module_names}
    assert {name for name in brought if not name.startswith("_hullft_ops_")} <= {
        "hullft_ops",
        "torch",
    }


def test_import_without_torch_before_it() -> None:
    command = "import hullft_ops; print(hullft_ops.__version__)"
    result = subprocess.run([sys.executable, "-c", command], capture_output=True, check=True)
    assert result.stdout.decode().strip() == hullft_ops.__version__


def test_import_takes_under_a_fifth_of_a_second_of_processor_time() -> None:
    assert min(import_in_a_new_process()["seconds"] for _ in range(3)) < 0.2


def test_version_is_that_of_the_distribution() -> None:
    assert hullft_ops.__version__ == importlib.metadata.version("hullft_ops")


def test_simd_levels() -> None:
    levels = _C.simd_levels()
    assert levels[-1] == "portable"
    assert _C.simd_level() == levels[0]
    with pytest.raises(ValueError, match="use_simd_level: 'avx1024' cannot run on this processor"):
        _C.use_simd_level("avx1024")
