"""What is trained and with which settings, checked before the first step."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

from hullft_ops._checks import check_number
from hullft_ops.ttft.model.onednn import has_bfloat16


def trainable_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The model's parameters that require a gradient, each once, in the model's order."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def checked_trained(model: "PreTrainedModel") -> list[nn.Parameter]:
    """The parameters to train, see `trainable_parameters`. Warns if they are float16. ValueError if
    there are none, or some are on the meta device or made in inference mode."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not named:
        raise ValueError(
            "TestTimeFinetuner: model must have a parameter with requires_grad, got none; "
            "PEFT adapters are loaded with is_trainable=True"
        )
    if absent := [name for name, p in named.items() if p.is_meta]:
        raise ValueError(
            "TestTimeFinetuner: trained parameters must have storage, "
            f"got {len(absent)} parameters on the meta device, for example {absent[0]}"
        )
    if made := [name for name, p in named.items() if p.is_inference()]:
        raise ValueError(
            "TestTimeFinetuner: trained parameters must be made outside of inference mode, got "
            f"{len(made)} parameters made in it, for example {made[0]}: load the model outside of "
            "torch.inference_mode()"
        )
    if any(p.dtype == torch.float16 for p in named.values()):
        warnings.warn(
            "TestTimeFinetuner: trained parameters are float16, in which the square of a small "
            "gradient is 0 and Adam's step far too large: load the model with dtype=torch.float32 "
            "or torch.bfloat16",
            stacklevel=3,
        )
    return list(named.values())


def check_same_trained(model: nn.Module, trained: Sequence[nn.Parameter]) -> None:
    wanted = trainable_parameters(model)
    if [*map(id, wanted)] != [*map(id, trained)]:
        raise RuntimeError(
            "TestTimeFinetuner: the model has other parameters with requires_grad than when "
            f"this finetuner was made, {len(wanted)} now and {len(trained)} then: make a "
            "new finetuner"
        )


@contextmanager
def inference_tensors_explained(model: "PreTrainedModel") -> Iterator[None]:
    """Name the parameter that gradients cannot pass. Training after such parameters is possible."""
    try:
        yield
    except RuntimeError as error:
        made = [name for name, p in model.named_parameters() if p.is_inference()]
        if not made or "Inference tensors cannot be saved" not in str(error):
            raise
        raise RuntimeError(
            "TestTimeFinetuner: frozen parameters must be made outside of inference mode, got "
            f"{len(made)} made in it, for example {made[0]}: load the "
            "model outside of torch.inference_mode()"
        ) from error


def check_limit(name: str, limit: object) -> float | None:
    if limit is None:
        return None
    number = check_number("TestTimeFinetuner", name, limit)
    if not number > 0:  # NaN too
        raise ValueError(f"TestTimeFinetuner: {name} must be above 0, got {limit}")
    return float(number)


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(
            f"TestTimeFinetuner: {name} must be one of {', '.join(choices)}, got {value!r}"
        )


def autocast_dtype(
    function: str, dtype: str | torch.dtype | None, device: torch.device
) -> torch.dtype | None:
    if dtype is None:
        return None
    # float16 would need its losses scaled.
    if dtype not in ("bfloat16", torch.bfloat16):
        raise ValueError(f"{function}: dtype must be bfloat16 or None, got {dtype}")
    if not has_bfloat16(device):
        warnings.warn(
            f"{function}: this processor multiplies bfloat16 in software, far slower than "
            "float32: dtype=None is faster",
            stacklevel=3,
        )
    return torch.bfloat16
