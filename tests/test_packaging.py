"""What an import costs and brings, and what the binary says of itself."""

import ast
import importlib.metadata
import json
import re
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

ROOT = Path(__file__).parent.parent
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
    """The modules that an import of this package brings beside those of torch."""
    result = subprocess.run(
        [sys.executable, "-c", IMPORT], capture_output=True, check=True
    )
    return list(json.loads(result.stdout))


def test_import_brings_torch_alone() -> None:
    top_level = {name.partition(".")[0] for name in imported_in_a_new_process()}
    brought = {name for name in top_level if name not in sys.stdlib_module_names}
    assert {name for name in brought if not name.startswith("_hullft_ops_")} <= {
        "hullft_ops",
        "torch",
    }


def test_import_without_torch_before_it() -> None:
    command = "import hullft_ops; print(hullft_ops.__version__)"
    result = subprocess.run(
        [sys.executable, "-c", command], capture_output=True, check=True
    )
    assert result.stdout.decode().strip() == hullft_ops.__version__


def test_import_leaves_the_slow_parts_for_later() -> None:
    brought = imported_in_a_new_process()
    assert "hullft_ops._C" in brought
    assert not [
        name for name in brought if f"{name}.".startswith(tuple(f"{s}." for s in SLOW))
    ]


def imports_of(folder: Path) -> set[str]:
    """The packages that any file in it asks for, wherever in the file."""
    found: set[str] = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                found.add(node.module.partition(".")[0])
    return found - sys.stdlib_module_names - {"hullft_ops"}


def test_what_is_imported_comes_with_an_extra_of_that_name() -> None:
    """The first command of the README installs ``ttft`` and no more."""
    wanted: dict[str, set[str]] = {}
    for text in importlib.metadata.requires("hullft_ops") or []:
        requirement = Requirement(text)
        extra = re.search(r"extra == ['\"]([\w-]+)", str(requirement.marker))
        wanted.setdefault(extra[1] if extra else "", set()).add(
            canonicalize_name(requirement.name)
        )
    given = wanted[""].union(
        *(wanted[extra] for extra in ("ttft", "lm-eval", "qdrant", "ray"))
    )
    by_package = importlib.metadata.packages_distributions()
    imports = imports_of(Path(hullft_ops.__file__).parent)
    assert {"torch", "transformers", "faiss", "qdrant_client"} <= imports
    for package in imports:
        assert given & set(map(canonicalize_name, by_package[package])), (
            f"{package} comes with no extra"
        )


def test_version_is_that_of_the_distribution() -> None:
    assert hullft_ops.__version__ == importlib.metadata.version("hullft_ops")


def test_metadata_is_complete() -> None:
    metadata = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))[
        "project"
    ]
    assert metadata["authors"] == [{"name": "hullft_ops developers"}]
    assert {"test-time finetuning", "Frank-Wolfe"} <= set(metadata["keywords"])
    assert metadata["urls"]["Paper"].endswith("2605.30337")
    assert {
        f"Programming Language :: Python :: 3.{minor}" for minor in range(11, 15)
    } <= set(metadata["classifiers"])
    assert (ROOT / metadata["readme"]).is_file()


def test_simd_levels() -> None:
    levels = _C.simd_levels()
    assert levels[-1] == "portable"
    assert _C.simd_level() == levels[0]
    with pytest.raises(
        ValueError, match="use_simd_level: 'avx1024' cannot run on this processor"
    ):
        _C.use_simd_level("avx1024")
