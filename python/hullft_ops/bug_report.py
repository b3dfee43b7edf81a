"""The block of text for a bug report: what ran where, and nothing about who ran it.

``hullft-ops info --report`` prints it. Only environment variables on an allow list appear. A value
appears only if it looks like a setting: never a path, an address or a secret.
"""

import os
import re
from collections.abc import Mapping

from hullft_ops.collect_env import collect_env, format_env

# These change threads, determinism, devices, memory or offline behaviour.
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
    "TORCH_NUM_THREADS",
    "TRANSFORMERS_OFFLINE",
)
_SETTING = re.compile(r"[\w.,:+*={}\[\]()-]{1,80}")


def bug_report(environment: Mapping[str, str] | None = None) -> str:
    """A Markdown block for an issue: versions, build, machine, and the variables that matter."""
    variables = os.environ if environment is None else environment
    lines = [f"  {name:<22} {_shown(variables[name])}" for name in VARIABLES if name in variables]
    body = [format_env(collect_env()), "environment", *(lines or ["  none of those that matter"])]
    return "\n".join(["```text", *body, "```"])


def _shown(value: str) -> str:
    """The value if it has only the characters of a setting: no slash, no space, no at sign."""
    if not value:
        return "(empty)"
    return value if _SETTING.fullmatch(value) else "(set, not shown)"


if __name__ == "__main__":
    print(bug_report())
