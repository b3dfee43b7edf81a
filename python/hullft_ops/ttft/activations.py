"""An activation in one operation where a model makes it of many."""

from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import gelu

from hullft_ops.ttft.forwards import replaced_forwards


def fused_activations(model: nn.Module) -> AbstractContextManager[None]:
    """Has GPT-2's activation, transformers' "gelu_new", run as torch's GELU, the same function.

    It is eight operations otherwise, each of which reads and writes a layer's widest tensor. In
    bfloat16 they also round each time.
    """
    from transformers.activations import NewGELUActivation

    return replaced_forwards(model, {NewGELUActivation: _gelu})


def _gelu(module: Any, x: Tensor) -> Tensor:
    return gelu(x, approximate="tanh")
