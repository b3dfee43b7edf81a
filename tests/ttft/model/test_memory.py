"""An adaptation needs four sizes of the model, parameters, two moments and a snapshot, and five
where all gradients must be there at once."""

import ctypes
from pathlib import Path

import pytest
import torch
from benchmarks.memory import parameter_buffers

from hullft_ops.ttft.model.snapshot import ModelSnapshot

PROMPT = "the cat sat on the red mat"
CPU = torch.device("cpu")

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(),
    reason="Linux counts the memory at its peak",
)


@pytest.fixture(autouse=True)
def large_blocks_go_back():
    """A command that another test ran here may have had the process keep the memory it frees."""
    mmap_threshold = -3  # of glibc's malloc.h
    assert ctypes.CDLL(None).mallopt(mmap_threshold, 2**17)


def buffers(model, make, **options):
    finetuner = make(model, n_select=4, **options)
    support = finetuner.select(PROMPT)

    def adapt():
        with finetuner.adapted(support):
            pass

    return parameter_buffers(model, support, adapt, CPU)


def test_four_buffers_and_no_more(large, make):
    assert 3.9 < buffers(large, make) < 4.4


def test_five_buffers_where_gradients_are_clipped(large, make):
    assert 4.8 < buffers(large, make, max_grad_norm=1.0) < 5.2


def test_one_more_would_be_seen(large, make, monkeypatch):
    saved = ModelSnapshot.save

    def save_twice(self):
        saved(self)
        self.second = [tensor.clone() for tensor in self.saved]

    monkeypatch.setattr(ModelSnapshot, "save", save_twice)
    assert buffers(large, make) > 4.9
