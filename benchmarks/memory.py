"""Peak memory of a call, and of an adaptation as a multiple of its model."""

import ctypes
import gc
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hullft_ops.ttft import Support

from benchmarks.timing import Call
from hullft_ops.ttft.model.loss import MeanLoss
from hullft_ops.ttft.training.trainer import fast_forwards

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"


def peak_bytes(call: Call, device: torch.device) -> int:
    """Peak bytes of the device's memory during the call, including what was in use before.

    On the CPU it is this process's resident memory, as Linux counts it (glibc's allocator).
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        call()
        return torch.cuda.max_memory_allocated(device)
    # Freed memory that the process still holds would hide as much of the call's memory.
    ctypes.CDLL(None).malloc_trim(0)
    _CLEAR_REFS.write_text(_RESET_PEAK)
    call()
    line = next(s for s in _STATUS.read_text().splitlines() if s.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def forward_backward(
    model: "PreTrainedModel", tokens: Sequence[int], autocast: torch.dtype | None
) -> Call:
    """A forward and backward pass on a text, as in finetuning. Drops the gradients.

    Args:
        autocast: dtype of the forward pass; None for the model's own.
    """
    mean_loss, text = MeanLoss(model), torch.tensor(tokens, device=model.device)

    def one_pass() -> None:
        with fast_forwards(model):
            with torch.autocast(
                text.device.type, dtype=autocast, enabled=autocast is not None
            ):
                loss = mean_loss(text)
            torch.autograd.backward(loss)
        model.zero_grad(set_to_none=True)

    return one_pass


def parameter_buffers(
    model: "PreTrainedModel",
    support: "Support",
    adapt: Call,
    device: torch.device,
    autocast: torch.dtype | None = None,
) -> float:
    """Peak memory of an adaptation in sizes of the model, without activations.

    Forward-backward passes on the texts hold parameters and gradients, which count 2, and
    activations. What an adaptation needs beyond such passes is added in sizes of the model: two
    moments and a snapshot make 3. The passes cover all texts, because torch keeps the code that it
    compiles for every length. Weights that autocast casts count as activations, because a pass
    keeps them for its backward.

    Args:
        adapt: adapts to ``support`` with an unused finetuner of ``model``: the buffers that a
            finetuner keeps must not exist yet.
        autocast: dtype that the finetuner trains in; None for the model's own.
    """
    trained = [
        ids
        for ids, count in zip(support.input_ids, support.counts, strict=True)
        if count
    ]
    passes = [forward_backward(model, ids, autocast) for ids in trained]

    def all_passes() -> None:
        for one_pass in passes:
            one_pass()

    all_passes()
    plain = peak_bytes(all_passes, device)
    ours = peak_bytes(adapt, device)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    return 2 + (ours - plain) / size
