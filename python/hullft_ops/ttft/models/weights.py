"""Which parameters of a model are trained, and how large they are: rates are shares of that."""

import math
from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# A matrix of zeros is trained as if its weights had this size.
_SMALLEST = 1e-3


def trained_parameters(model: "PreTrainedModel") -> dict[str, nn.Parameter]:
    """The matrices of layers that have ``requires_grad``, by name, each once.

    If there are none, and for a PEFT model, all parameters with ``requires_grad``. Embeddings,
    head, norms and biases would add nothing to two steps on a prompt, and half as much memory
    again.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if getattr(model, "peft_config", None):
        return named
    layers = {id(p) for p in _layers(model)}
    return {name: p for name, p in named.items() if id(p) in layers} or named


def rate_scales(
    model: "PreTrainedModel", parameters: Sequence[nn.Parameter]
) -> list[float]:
    """What a rate is multiplied by to give the step of each parameter.

    That is its root mean square, as in Shazeer and Stern, *Adafactor*, arXiv:1804.04235, section 8.
    The parameters of an adapter have no size of their own at first; theirs is `layer_scale`.
    """
    if getattr(model, "peft_config", None):
        return [layer_scale(model)] * len(parameters)
    return [_rms(parameter) for parameter in parameters]


def layer_scale(model: "PreTrainedModel") -> float:
    """The median root mean square of the matrices that a PEFT model's adapters change.

    0 if they are quantized.
    """
    frozen = [p for p in _layers(model) if not p.requires_grad]
    return median(map(_rms, frozen)) if frozen else 0.0


def _layers(model: "PreTrainedModel") -> list[nn.Parameter]:
    """All matrices but embeddings, the head, stacked biases and what is quantized."""
    outer = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    head: nn.Module | None = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if head is not None:
        outer |= {id(parameter) for parameter in head.parameters()}
    return [
        p
        for name, p in model.named_parameters()
        if p.dim() > 1
        and p.is_floating_point()
        and id(p) not in outer
        and not name.endswith("bias")
    ]


def _rms(weight: Tensor) -> float:
    norm: float = torch.linalg.vector_norm(weight.detach(), dtype=torch.float64).item()
    return max(norm / math.sqrt(max(weight.numel(), 1)), _SMALLEST)
