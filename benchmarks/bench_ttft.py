"""Adapting a model to a prompt, against the loops of `benchmarks.loops`.

Ours does everything: embedding, search, selection, finetuning, restoring. A loop gets our selection
and only finetunes and restores. The padded loop is always float32. The other has our dtype. On a
GPU, where an embedder's weights may be missing, trigrams are counted instead.
"""

from typing import TYPE_CHECKING

import pytest
import torch

from benchmarks.memory import added_bytes
from benchmarks.recorder import Recorder

if TYPE_CHECKING:
    from benchmarks import adapting
else:
    adapting = pytest.importorskip("benchmarks.adapting", exc_type=ImportError)

MEMORY = "memory added, sizes of the model"


def cases(smoke: bool) -> list["adapting.Case"]:
    return adapting.cases(smoke)


def test_ttft(case: "adapting.Case", recorder: Recorder, device: torch.device) -> None:
    embedder = adapting.embedder_of(device)
    ours = adapting.Adapting(case, device, embedder)
    assert ours.difference() <= case.allowed_difference(device)
    size = sum(p.numel() * p.element_size() for p in ours.model.parameters())
    recorder.fact(MEMORY, added_bytes(ours.adapt, device) / size)
    recorder.ours(ours.adapt)
    for name, loop in ours.loops().items():
        recorder.peer(name, ours.restoring(loop))
