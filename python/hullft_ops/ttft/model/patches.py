"""Giving a model's modules another forward or mode for a while."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from hullft_ops.ttft.model.exclusive import Claim

# Called with the module and its input.
Forward = Callable[[Any, Tensor], Tensor]


@contextmanager
def replaced_forwards(
    model: nn.Module, forwards: Mapping[type, Forward]
) -> Iterator[None]:
    """Make every module of exactly these types run another forward, unless it is compiled or
    somebody has replaced its own. Checkpointed layers run again in the backward pass: keep the
    block open for it."""
    replaced: list[nn.Module] = []
    with Claim(model):
        try:
            for module in model.modules():
                if type(module) in forwards and "forward" not in vars(module):
                    forward = forwards[type(module)]
                    replaced.append(module)
                    vars(module)["forward"] = partial(_call, forward, module)
            yield
        finally:
            _put_back(replaced)


def put_back_forwards(model: nn.Module) -> None:
    """Undo what an interrupted `replaced_forwards` left behind in the model."""
    _put_back(module for module in model.modules() if is_replaced_here(module))


def is_replaced_here(module: nn.Module) -> bool:
    """Whether `replaced_forwards` has given the module its forward."""
    forward = vars(module).get("forward")
    return isinstance(forward, partial) and forward.func is _call


def own_forward(module: Any, x: Tensor) -> Tensor:
    """The output of the class's own forward, whatever forward the module has at the moment."""
    own: Tensor = type(module).forward(module, x)
    return own


def _put_back(modules: Iterable[nn.Module]) -> None:
    for module in modules:
        vars(module).pop("forward", None)


def _call(forward: Forward, module: Any, x: Tensor) -> Tensor:
    return (
        own_forward(module, x) if torch.compiler.is_compiling() else forward(module, x)
    )


def fused_activations(model: nn.Module) -> AbstractContextManager[None]:
    """Run GPT-2's activation, transformers' "gelu_new", as torch's GELU, the same function."""
    from transformers.activations import NewGELUActivation

    # It takes eight operations, and each reads, writes and, in bfloat16, rounds a large tensor.
    return replaced_forwards(model, {NewGELUActivation: _gelu})


def _gelu(module: Any, x: Tensor) -> Tensor:
    return gelu(x, approximate="tanh")


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put the model in eval mode, and on exit every module back in its own mode."""
    with Claim(model):
        # ``model.train`` would give all the same mode.
        modes = [(module, module.training) for module in model.modules()]
        try:
            model.train(False)
            yield
        finally:
            for module, training in modes:
                module.training = training
