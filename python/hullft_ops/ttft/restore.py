"""Putting back what a with block changes, whatever ends it: a model, and a thread's modes."""

import io
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial, wraps
from operator import call
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from hullft_ops import _C

if TYPE_CHECKING:
    from transformers import PreTrainedModel

P = ParamSpec("P")
T = TypeVar("T")
# The thread that has each model at the moment. A tuple, so that each call has its own.
_callers: "WeakKeyDictionary[nn.Module, tuple[int]]" = WeakKeyDictionary()


def signal_safe(
    function: Callable[P, Iterator[T]],
) -> Callable[P, AbstractContextManager[T]]:
    """As `contextlib.contextmanager`, but a signal cannot come between the body and its end.

    Python handles signals at the first instruction of a function that is written in Python. An
    exception that the handler raises there, as Ctrl-C does, ends contextlib's ``__exit__`` before
    it has reached the generator, whose ``finally`` then does not run. Here no such function is in
    between: the handler runs in the generator, at its ``yield`` or later, so within its with
    blocks. What must be undone belongs into `at_exit`; a ``finally`` may be cut short.

    The generator sees every end of the body as GeneratorExit.
    """

    @wraps(function)
    def block(*args: P.args, **kwargs: P.kwargs) -> AbstractContextManager[T]:
        return _Block(function(*args, **kwargs))

    return block


@signal_safe
def at_exit(undo: Callable[[], None]) -> Iterator[None]:
    """Call ``undo`` at the end of the body, again from its beginning for each signal that cuts it
    short, until it is done. What the last signal's handler raised is raised then."""
    try:
        yield
    finally:
        # The first call in this clause, of a function in C++: no signal can come before it.
        _C.call_until_done(undo)


class _Block(io.IOBase):
    # IOBase's ``__exit__`` is written in C, and calls ``close``.
    def __init__(self, generator: Any) -> None:
        self._generator = generator
        # A generator's is written in C too.
        self.close = generator.close  # type: ignore[method-assign]

    def __enter__(self) -> Any:
        try:
            return next(self._generator)
        except BaseException:
            # The signal may have come behind the call.
            self.close()
            raise


@signal_safe
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


class ThreadModes:
    """The grad mode of this thread, and its autocast for a device, when this is made.

    Ctrl-C within the end of `torch.no_grad` or `torch.autocast` leaves theirs on.
    """

    def __init__(self, device: torch.device) -> None:
        self._thread = threading.get_ident()
        self._records_gradients = torch.is_grad_enabled()
        self._device = device.type
        self._is_on = torch.is_autocast_enabled(self._device)
        self._dtype = torch.get_autocast_dtype(self._device)
        # Torch tells the depth only when it changes. One instruction: no signal comes between.
        _, self._depth = map(
            call, (torch.autocast_increment_nesting, torch.autocast_decrement_nesting)
        )

    def put_back(self) -> None:
        """Give them back to the thread that had them."""
        # A generator that nobody holds any more may be closed in any thread.
        if threading.get_ident() != self._thread:
            return
        torch.set_grad_enabled(self._records_gradients)
        torch.set_autocast_enabled(self._device, self._is_on)
        torch.set_autocast_dtype(self._device, self._dtype)
        torch.autocast_increment_nesting()
        while torch.autocast_decrement_nesting() > self._depth:
            pass
        if self._depth == 0:
            # Copies of weights, which autocast keeps no longer than it is on.
            torch.clear_autocast_cache()


def unwrapped(model: "PreTrainedModel") -> "PreTrainedModel":
    """The model without the wrappers of PEFT and ``torch.compile``."""
    inner: Any = getattr(model, "_orig_mod", model)
    if hasattr(inner, "get_base_model"):
        inner = inner.get_base_model()
    model = getattr(inner, "_orig_mod", inner)
    return model


@signal_safe
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


@signal_safe
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
    with at_exit(ThreadModes(device).put_back):
        state = _State(model, trained, copies)
        with at_exit(state.put_back):
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
            self._buffers = [
                (module, dict(vars(module)), name, buffer, buffer.clone())
                for module in model.modules()
                for name, buffer in module._buffers.items()
                if buffer is not None
            ]
        self._modes = [(module, module.training) for module in model.modules()]

    def put_back(self) -> None:
        # In inference mode too, parameters count what is written to them.
        with torch.no_grad():
            if self._copies:
                torch._foreach_copy_(self._values, self._copies)
            for parameter, values, gradient, requires_grad in self._parameters:
                if requires_grad:
                    # The body may have given it another shape.
                    parameter.data = values
                parameter.requires_grad_(requires_grad)
                parameter.grad = gradient
            for module, attributes, name, buffer, content in self._buffers:
                # A module may have put another tensor in its place, as dynamic RoPE does, which
                # counts beside it for how long a text it is.
                vars(module).update(attributes)
                module._buffers[name] = buffer
                buffer.copy_(content)
        _restore_modes(self._modes)
        # A caller's autocast holds copies of the adapted weights.
        torch.clear_autocast_cache()


def _places(tensors: Sequence[Tensor]) -> list[tuple[torch.dtype, torch.device]]:
    return [(tensor.dtype, tensor.device) for tensor in tensors]
