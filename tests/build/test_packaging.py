"""What an import costs and brings, and what the binary says of itself."""

import ast
import importlib.metadata
import json
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import hullft_ops
from hullft_ops import _C

ROOT = Path(__file__).parents[2]
IMPORT = """
import json, sys
import torch
before = set(sys.modules)
import hullft_ops
print(json.dumps(sorted(set(sys.modules) - before)))
"""
# What makes an import slow: each takes longer than the rest of torch or of this package.
SLOW = (
    "hullft_ops.ttft",
    "hullft_ops.reference",
    "torch._dynamo",
    "torch._inductor",
    "torch.distributed.tensor",
    "torch.onnx",
)


@cache
def imported_in_a_new_process() -> list[str]:
    """The modules that an import of this package brings beside torch's."""
    result = subprocess.run(
        [sys.executable, "-c", IMPORT], capture_output=True, check=True
    )
    return list(json.loads(result.stdout))


def test_import_brings_torch_alone() -> None:
    for name in imported_in_a_new_process():
        package = name.partition(".")[0]
        assert (
            package in sys.stdlib_module_names
            or package in ("hullft_ops", "torch")
            or package.startswith("_hullft_ops_")
        ), name


def test_import_leaves_the_slow_parts_for_later() -> None:
    imported = imported_in_a_new_process()

    assert "hullft_ops._C" in imported
    assert not set(SLOW) & set(imported)


OF_OPERATORS = """
import sys
sys.modules.update(dict.fromkeys(sys.argv[1:]))
import activeft.sift, pyversity
from benchmarks import bench_integerize, bench_lmo, bench_replay, bench_selection
print(len(bench_replay.cases(smoke=False)[0].shapes()))
"""


def test_the_benchmarks_of_operators_need_nothing_of_the_layer() -> None:
    of_layer = required("ttft") - required("test") - required("bench")
    hidden = [
        package
        for package, names in importlib.metadata.packages_distributions().items()
        if of_layer & set(map(canonicalize_name, names))
    ]

    assert "transformers" in hidden

    command = [sys.executable, "-c", OF_OPERATORS, *hidden]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)

    assert result.stdout.split() == ["148"], result.stderr


def required(extra: str) -> set[str]:
    """The distributions that an extra names."""
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    texts = pyproject["project"]["optional-dependencies"][extra]
    return {canonicalize_name(Requirement(text).name) for text in texts}


def imports_of(folder: Path) -> set[str]:
    """The packages that any file in it asks for, wherever in the file."""
    packages: set[str] = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                packages |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                packages.add(node.module.partition(".")[0])

    return packages - sys.stdlib_module_names - {"hullft_ops"}


def test_what_is_imported_is_required() -> None:
    """By an extra that users install, not by the extras of tests and documentation."""
    installed = {"torch"}.union(*map(required, ("sklearn", "ttft", "ray")))
    distributions = importlib.metadata.packages_distributions()

    for package in imports_of(Path(hullft_ops.__file__).parent):
        names = set(map(canonicalize_name, distributions[package]))
        assert names & installed, f"{package} comes with no extra"


def test_version_is_that_of_the_distribution() -> None:
    assert hullft_ops.__version__ == importlib.metadata.version("hullft_ops")


def test_simd_levels() -> None:
    levels = _C.simd_levels()

    assert levels[-1] == "portable"
    assert _C.simd_level() == levels[0]

    with pytest.raises(ValueError, match="use_simd_level: 'avx1024' cannot run"):
        _C.use_simd_level("avx1024")
