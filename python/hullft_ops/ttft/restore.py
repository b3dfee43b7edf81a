"""Putting back what a with block changes, whatever ends it: a model, and a thread's modes."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial, wraps
from io import IOBase
from operator import call
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

P = ParamSpec("P")
T = TypeVar("T")

# The thread that has each model at the moment. A tuple, so that each call has its own.
_callers: "WeakKeyDictionary[nn.Module, tuple[int]]" = WeakKeyDictionary()


class _Block(IOBase):
    """Runs a generator up to its ``yield``, and at the end of a with block closes it."""

    def __init__(self, generator: Any) -> None:
        # Called by ``IOBase.__exit__``. Both are in C, where Python handles no signal.
        self.close = generator.close  # type: ignore[method-assign]
        self._generator = generator

    def __enter__(self) -> Any:
        try:
            return next(self._generator)
        except BaseException:
            self.close()
            raise


def block(
    generator: Callable[P, Iterator[T]],
) -> Callable[P, AbstractContextManager[T]]:
    """As `contextlib.contextmanager`, but Ctrl-C cannot keep the generator from ending.

    contextmanager's ``__exit__`` is in Python: a signal that arrives as it begins leaves the
    generator suspended for as long as somebody holds the exception. The generator sees every end
    of the body as GeneratorExit, so it can clean up but not handle exceptions.
    """

    @wraps(generator)
    def make(*args: P.args, **options: P.kwargs) -> Any:
        return _Block(generator(*args, **options))

    return make


@block
def at_exit(undo: Callable[[], None]) -> Iterator[None]:
    """Call ``undo`` at the end of the body, again from its beginning if a signal cuts it short.

    It is called at most three times.
    """
    try:
        yield
    finally:
        # Not a loop or a function: signals would be handled where it begins, outside of any try.
        try:
            undo()
        except BaseException:
            try:
                undo()
            except BaseException:
                undo()
                raise
            raise


@block
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put the model in eval mode, and at the end every module back in its mode from before."""
    # ``model.train`` would give all the same mode.
    modes = [(module, module.training) for module in model.modules()]
    with at_exit(partial(_restore_modes, modes)):
        model.train(False)
        yield


def _restore_modes(modes: Iterable[tuple[nn.Module, bool]]) -> None:
    """Put each module back in its mode."""
    for module, training in modes:
        module.training = training


@block
def thread_modes_restored(device: torch.device) -> Iterator[None]:
    """Put this thread's grad mode, and its autocast for a device, back at the end of the body.

    Ctrl-C within the end of `torch.no_grad` or `torch.autocast` leaves theirs on.
    """
    records_gradients = torch.is_grad_enabled()
    is_on = torch.is_autocast_enabled(device.type)
    dtype = torch.get_autocast_dtype(device.type)
    # Torch tells the depth only when it changes. One instruction: no signal comes between.
    _, depth = map(
        call, (torch.autocast_increment_nesting, torch.autocast_decrement_nesting)
    )

    def put_back() -> None:
        torch.set_grad_enabled(records_gradients)
        torch.set_autocast_enabled(device.type, is_on)
        torch.set_autocast_dtype(device.type, dtype)
        torch.autocast_increment_nesting()
        while torch.autocast_decrement_nesting() > depth:
            pass
        if depth == 0:
            # Copies of weights, which autocast keeps no longer than it is on.
            torch.clear_autocast_cache()

    with at_exit(put_back):
        yield


def unwrapped(model: "PreTrainedModel") -> "PreTrainedModel":
    """The model without the wrappers of PEFT and ``torch.compile``."""
    inner: Any = getattr(model, "_orig_mod", model)
    if hasattr(inner, "get_base_model"):
        inner = inner.get_base_model()
    model = getattr(inner, "_orig_mod", inner)
    return model


@block
def exclusive(model: Any, *, adapts: bool = False) -> Iterator[None]:
    """Keep other threads from the model in the body. Nobody waits.

    The wrappers of PEFT and ``torch.compile`` and the model within them are one. Whoever has a
    model may read it again, to score it within an adaptation, but not adapt it.

    Raises:
        RuntimeError: the model is in use elsewhere, or, to adapt it, here.
    """
    key = unwrapped(model)
    caller = (threading.get_ident(),)
    with at_exit(partial(_release, key, caller)):
        # One operation, which no other thread can come between.
        holder = _callers.setdefault(key, caller)
        if holder != caller or (adapts and holder is not caller):
            place = "here" if holder == caller else "in another thread"
            raise RuntimeError(
                f"TestTimeFinetuner: the model is in use {place} already: leave that with block "
                "first, or use a copy of the model"
            )
        yield


def _release(key: nn.Module, caller: tuple[int]) -> None:
    # A call that was refused, or that is within another, must not end the other.
    if _callers.get(key) is caller:
        del _callers[key]


@block
def restored(
    model: nn.Module, trained: Sequence[nn.Parameter], copies: list[Tensor]
) -> Iterator[list[Tensor]]:
    """Restore the model at the end of the body, even after an exception or Ctrl-C.

    The trained parameters, buffers, gradients, ``requires_grad`` flags and training modes get the
    same bits as before, in the same storage, modules with buffers their attributes, and this thread
    its grad mode and autocast. Other changes stay. In the body the parameters have no gradients.

    Args:
        model: the model that contains ``trained``.
        trained: the parameters that the body changes.
        copies: memory for their copies, filled on the first call and used again by later ones.

    Yields:
        The values of ``trained`` from before, in the same order. Do not change them.
    """
    device = next(model.parameters()).device
    with thread_modes_restored(device):
        state = _State(model, trained, copies)
        with at_exit(state.put_back), at_exit(state.put_back_values):
            for parameter in model.parameters():
                # Detached, not zeroed: a backward pass must not add to a gradient that is kept.
                parameter.grad = None
            yield copies


class _State:
    def __init__(
        self, model: nn.Module, trained: Sequence[nn.Parameter], copies: list[Tensor]
    ) -> None:
        self._copies = copies
        # A tensor made in inference mode could not be written to outside of it.
        with torch.inference_mode(False), torch.no_grad():
            # Writing to these counts as writing to the parameters.
            self._values: list[Tensor] = [parameter.detach() for parameter in trained]
            if _places(copies) != _places(trained):
                copies[:] = [torch.empty_like(parameter) for parameter in trained]
            if copies:  # torch refuses an empty list
                torch._foreach_copy_(copies, self._values)
            self._parameters = [
                (parameter, parameter.detach(), parameter.grad, parameter.requires_grad)
                for parameter in model.parameters()
            ]
            # A buffer may overlap itself, or be of inference mode. Its storage takes any bytes.
            storages = [buffer.untyped_storage() for buffer in model.buffers()]
            self._buffers = [
                (storage, storage.clone())  # type: ignore[no-untyped-call]
                for storage in storages
            ]
        self._modules = [
            (module, dict(vars(module)), dict(module._buffers))
            for module in model.modules()
            if module._buffers
        ]
        self._modes = [(module, module.training) for module in model.modules()]

    def put_back_values(self) -> None:
        """The first of the two, and nearly all of the time: no signal comes within it."""
        if self._copies:
            torch._foreach_copy_(self._values, self._copies)

    def put_back(self) -> None:
        for parameter, values, gradient, requires_grad in self._parameters:
            if requires_grad:
                # The body may have given it another shape.
                parameter.data = values
            parameter.requires_grad_(requires_grad)
            parameter.grad = gradient
        for module, attributes, buffers in self._modules:
            # A module may have put another tensor in a buffer's place, as dynamic RoPE does, which
            # counts beside it for how long a text it is.
            vars(module).update(attributes)
            module._buffers.update(buffers)
        for storage, content in self._buffers:
            storage.copy_(content)
        _restore_modes(self._modes)
        # A caller's autocast holds copies of the adapted weights.
        torch.clear_autocast_cache()


def _places(tensors: Sequence[Tensor]) -> list[tuple[torch.dtype, torch.device]]:
    return [(tensor.dtype, tensor.device) for tensor in tensors]
