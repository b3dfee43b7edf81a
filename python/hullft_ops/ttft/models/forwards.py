"""Giving a model's modules another forward, mode or precision for a while."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu
from torch.nn.modules.module import _has_any_global_hook

from hullft_ops.ttft.contexts import at_exit, signal_safe

Precision = Literal["bfloat16"]
# bfloat16 where the device has instructions for it.
AutoPrecision = Literal["auto", "bfloat16"]
# Called with the module and its input.
Forward = Callable[[Any, Tensor], Tensor]


@signal_safe
def replaced_forwards(
    model: nn.Module, forwards: Mapping[type, Forward]
) -> Iterator[None]:
    """Make every module of exactly these types run another forward in the body.

    Modules whose forward somebody else has replaced keep theirs, and so does a compiled model,
    which would be compiled again. Checkpointed layers run again in the backward pass: keep the body
    open for it.
    """
    modules = [] if _is_compiled(model) else model.modules()
    replaced: list[nn.Module] = []
    with at_exit(partial(_restore_forwards, replaced)):
        for module in modules:
            if type(module) in forwards and not is_replaced(module):
                replaced.append(module)
                forward = partial(_call, forwards[type(module)], module)
                vars(module)["forward"] = forward
        yield


def _restore_forwards(modules: Iterable[nn.Module]) -> None:
    for module in modules:
        vars(module).pop("forward", None)


def is_replaced(module: nn.Module) -> bool:
    """Whether somebody other than `replaced_forwards` has replaced the module's forward."""
    forward = vars(module).get("forward")
    ours = isinstance(forward, partial) and forward.func is _call
    return forward is not None and not ours


def is_observed(module: nn.Module) -> bool:
    """Whether hooks listen to the module's forward or backward, or its forward is replaced."""
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    everywhere = bool(_has_any_global_hook())  # type: ignore[no-untyped-call]
    return everywhere or any(hooks) or is_replaced(module)


def class_forward(module: Any, x: Tensor) -> Tensor:
    """The output of the class's forward, whatever forward the module has at the moment."""
    output: Tensor = type(module).forward(module, x)
    return output


def _is_compiled(model: nn.Module) -> bool:
    """Whether the model or a part of it is compiled, by ``torch.compile`` or ``compile()``."""
    return any(
        hasattr(module, "_orig_mod") or module._compiled_call_impl is not None
        for module in model.modules()
    )


def _call(forward: Forward, module: Any, x: Tensor) -> Tensor:
    # The forward of a module around this one may be compiled, which no module shows.
    if torch.compiler.is_compiling():
        return class_forward(module, x)
    return forward(module, x)


def fused_activations(model: nn.Module) -> AbstractContextManager[None]:
    """Run GPT-2's activation, transformers' "gelu_new", as torch's GELU, the same function."""
    from transformers.activations import NewGELUActivation

    # It takes eight operations, and each reads, writes and, in bfloat16, rounds a large tensor.
    return replaced_forwards(model, {NewGELUActivation: _gelu})


def _gelu(module: Any, x: Tensor) -> Tensor:
    return gelu(x, approximate="tanh")


@signal_safe
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put the model in eval mode, and at the end every module back in its mode from before."""
    # ``model.train`` would give all the same mode.
    modes = [(module, module.training) for module in model.modules()]
    with at_exit(partial(restore_modes, modes)):
        model.train(False)
        yield


def restore_modes(modes: Iterable[tuple[nn.Module, bool]]) -> None:
    """Put each module back in its mode."""
    for module, training in modes:
        module.training = training


def autocast(
    device: torch.device, dtype: AutoPrecision | None
) -> AbstractContextManager[Any]:
    """The context of a forward pass in ``dtype``; None for the model's own."""
    if dtype is None or (dtype == "auto" and not _computes_bfloat16(device)):
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def _computes_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
