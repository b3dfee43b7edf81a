"""Which models are adapted at the moment, so that no two adaptations meet in one."""

import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn


@dataclass(frozen=True)
class _Claim:
    """What one adaptation changes and reads, by address, and who does it."""

    changed: frozenset[int]
    read: frozenset[int]
    thread: int
    name: str
    lost: bool = False


# Held for moments only, and never while a process forks, so that no child finds it locked.
# Reentrant: a garbage collection in such a moment may drop an adaptation, which ends it.
_lock = threading.RLock()
_claims: dict[int, _Claim] = {}


@contextmanager
def claimed(model: nn.Module, trained: Iterable[nn.Parameter]) -> Iterator[None]:
    """Have the model for the with block alone.

    Models that share tensors, as a model and a PEFT model around it do, are one as far as one
    trains what the other reads.

    Raises:
        RuntimeError: it is being adapted; the message says by whom.
    """
    thread = threading.current_thread()
    claim = _Claim(
        _addresses(trained), _addresses(model.parameters()), threading.get_ident(), thread.name
    )
    with _lock:
        other = next((held for held in list(_claims.values()) if _conflict(held, claim)), None)
        if other is not None:
            raise RuntimeError(_refusal(other, claim))
        _claims[id(claim)] = claim
    try:
        yield
    finally:
        with _lock:
            del _claims[id(claim)]


def _addresses(parameters: Iterable[torch.Tensor]) -> frozenset[int]:
    """Of the tensors and of their storage, which views share; a tensor without one has none."""
    held = list(parameters)
    storages = {tensor.untyped_storage().data_ptr() for tensor in held}
    return frozenset(map(id, held)) | (storages - {0})


def _conflict(one: _Claim, other: _Claim) -> bool:
    return not (one.changed.isdisjoint(other.read) and other.changed.isdisjoint(one.read))


def _refusal(held: _Claim, claim: _Claim) -> str:
    if held.lost:
        return (
            "TestTimeFinetuner: the model was being adapted by another thread when this process "
            "was forked, so that its weights here are in between: load it again"
        )
    if held.thread == claim.thread:
        return (
            "TestTimeFinetuner: the model is adapted to another prompt already: leave that with "
            "block first"
        )
    return (
        "TestTimeFinetuner: the model is adapted to another prompt already, by the thread "
        f"{held.name}: give each thread its own copy of the model"
    )


def _after_fork_in_child() -> None:
    here = threading.get_ident()
    for key, claim in _claims.items():
        _claims[key] = replace(claim, lost=claim.thread != here)
    _lock.release()


os.register_at_fork(
    before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_after_fork_in_child
)
