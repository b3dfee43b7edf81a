"""Fast operators: least squares over the simplex, selection with counts, and gradient replay.

:mod:`hullft_ops.ttft` finetunes a HuggingFace model with them at test time. It needs the extra
``hullft_ops[ttft]``.
"""

import torch  # noqa: F401 (loads the libraries that the extension links)

from hullft_ops._C import build_info as _build_info
from hullft_ops.gradient_cache import GradientCache
from hullft_ops.lmo import LmoStep, fw_lmo
from hullft_ops.lstsq import LstsqSolution, nnls, simplex_lstsq
from hullft_ops.replay import ReplayAdam, ReplayAdamW
from hullft_ops.selection import Selection, fw_select, integerize, knn_select
from hullft_ops.sift import SiftSelection, sift_select

__version__: str = _build_info()["version"]

__all__ = [
    "GradientCache",
    "LmoStep",
    "LstsqSolution",
    "ReplayAdam",
    "ReplayAdamW",
    "Selection",
    "SiftSelection",
    "fw_lmo",
    "fw_select",
    "integerize",
    "knn_select",
    "nnls",
    "sift_select",
    "simplex_lstsq",
]
