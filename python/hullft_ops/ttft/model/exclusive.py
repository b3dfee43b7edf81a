"""Who uses a model at the moment, so that no two adaptations or scorings meet in it."""

import os
import threading
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from weakref import WeakValueDictionary

import torch
from torch import nn

# One lock per process, because a fork may happen while the parent holds its lock. It is reentrant:
# a garbage collection under the lock may drop an adaptation, which ends it.
_changes: dict[int, threading.Condition] = {}
# If an interrupt cuts a release short, the claim goes with its last reference.
_held: "WeakValueDictionary[int, Claim]" = WeakValueDictionary()


class Claim(AbstractContextManager[None]):
    """Reserves a model for one thread, which trains these parameters of it, or none and scores.

    Models that share modules, like a model and a PEFT model around it, count as one, and so do
    models of which one trains a tensor that the other reads. A thread may score the model that it
    adapts. It waits for other threads that score. RuntimeError if another one adapts, or this one
    adapts already.
    """

    def __init__(self, model: nn.Module, trained: Sequence[nn.Parameter] = ()) -> None:
        self._model = model
        self._trained = trained
        self.thread = threading.current_thread()

    def __enter__(self) -> None:
        modules = frozenset(map(id, self._model.modules()))
        self._changed = modules | _addresses(self._trained)
        self._read = modules | _addresses(self._model.parameters())
        self._process, self.thread = os.getpid(), threading.current_thread()
        change = _change()
        try:
            with change:
                while self._must_wait():
                    # A claim that is dropped without release does not notify.
                    change.wait(1.0)
                _held[id(self)] = self
        except BaseException:
            self.release()
            raise

    def __exit__(self, *raised: object) -> None:
        self.release()

    def release(self) -> None:
        """Release the model for others. Does nothing the second time."""
        change = _change()
        with change:
            _held.pop(id(self), None)
            change.notify_all()

    @property
    def is_held(self) -> bool:
        return id(self) in _held

    @property
    def is_of_this_thread(self) -> bool:
        return self.thread is threading.current_thread()

    def _must_wait(self) -> bool:
        waits = False
        for reference in _held.valuerefs():
            other = reference()
            if other is None or not self._meets(other):
                continue
            # Only the thread that forks goes on in the child, as its main thread.
            if (
                other._process != os.getpid()
                and other.thread is not threading.main_thread()
            ):
                raise RuntimeError(
                    "TestTimeFinetuner: another thread adapted or scored the model when this "
                    "process was forked, so its weights and modes here may be half changed: load "
                    "it again"
                )
            if self._trained and other._trained:
                advice = ": leave that with block first"
                if not other.is_of_this_thread:
                    name = other.thread.name
                    advice = f", by the thread {name}: give each thread its own copy of the model"
                raise RuntimeError(
                    "TestTimeFinetuner: the model, or one that shares its modules, is adapted to "
                    f"another prompt already{advice}"
                )
            if other.is_of_this_thread:
                continue
            if other._trained:
                raise RuntimeError(
                    f"TestTimeFinetuner: the thread {other.thread.name} adapts the model, or one "
                    "that shares its modules: score or continue it in that thread, or give each "
                    "thread its own copy of the model"
                )
            waits = True
        return waits

    def _meets(self, other: "Claim") -> bool:
        return not (
            self._changed.isdisjoint(other._read)
            and other._changed.isdisjoint(self._read)
        )


def _change() -> threading.Condition:
    return _changes.setdefault(os.getpid(), threading.Condition())


def _addresses(parameters: Iterable[torch.Tensor]) -> frozenset[int]:
    """Ids of the tensors and addresses of their storage, which views share, if they have any."""
    held = list(parameters)
    storages = {tensor.untyped_storage().data_ptr() for tensor in held}
    return frozenset(map(id, held)) | (storages - {0})
