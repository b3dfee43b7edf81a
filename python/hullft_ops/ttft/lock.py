"""A lock for each model: one thread or asyncio task at a time adapts or reads it."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from hullft_ops.ttft.models.checks import unwrapped


class _Use:
    def __init__(self) -> None:
        # Held while the model is read, not while it is adapted.
        self.lock = threading.RLock()
        # The thread and the task that adapt the model at the moment.
        self.adapted_by: tuple[int, Any] | None = None


_locks: "WeakKeyDictionary[nn.Module, _Use]" = WeakKeyDictionary()


@contextmanager
def exclusive(model: Any, *, adapts: bool = False) -> Iterator[None]:
    """Keep other threads and tasks from the model in the body.

    The wrappers of PEFT and ``torch.compile`` and the model within them are one. Whoever adapts a
    model may read it too. A reader may have to wait for another, and so may whoever adapts; nobody
    waits for the end of an adaptation.

    Raises:
        RuntimeError: the model is adapted already, or, to read it, adapted elsewhere.
    """
    use = _locks.setdefault(unwrapped(model), _Use())
    caller = threading.get_ident(), _current_task()
    try:
        with use.lock:
            _check(use, caller, adapts)
            if not adapts:
                yield
                return
            use.adapted_by = caller
        yield
    finally:
        # A call that was refused must not end another's adaptation.
        if use.adapted_by is caller:
            use.adapted_by = None


def _check(use: _Use, caller: tuple[int, Any], adapts: bool) -> None:
    if use.adapted_by is None or (not adapts and use.adapted_by == caller):
        return
    place = "here" if use.adapted_by == caller else "in another thread or task"
    raise RuntimeError(
        f"TestTimeFinetuner: the model is adapted {place} already: leave that with block first, or "
        "use a copy of the model"
    )


def _current_task() -> Any:
    try:
        return asyncio.current_task()
    except RuntimeError:  # no event loop runs in this thread
        return None
