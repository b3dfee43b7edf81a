"""What an operator refuses is a ValueError for every torch, and what is no argument's fault is not.

torch 2.15 makes a RuntimeError of what the operators throw; here the older behaviour may be met, so
the translation is tried on errors of either kind.
"""

import pytest
import torch

import hullft_ops
from hullft_ops import _ops
from problems import ON_VALUES


@pytest.mark.parametrize("name", ["fw_select", "adam_replay_"])
def test_a_refusal_becomes_a_value_error_with_its_text(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError(
            f"{name}: pool has NaN or infinity\nException raised from here"
        )

    monkeypatch.setattr(_ops.ops, name, refuse)
    with pytest.raises(ValueError, match=f"^{name}: pool has NaN or infinity$"):
        _ops.call(name, torch.ones(1))


def test_a_lack_of_memory_on_cuda_is_torchs_own_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = "CUDA out of memory: no workspace of 12 bytes on cuda:1: CUDA out of memory."

    def fail(*_: object) -> None:
        raise RuntimeError(f"hullft_ops: {said}\nException raised from here")

    monkeypatch.setattr(_ops.ops, "fw_select", fail)
    wanted = (
        "^fw_select: CUDA out of memory: no workspace of 12 bytes on cuda:1: "
        "CUDA out of memory.$"
    )
    with pytest.raises(torch.OutOfMemoryError, match=wanted):
        _ops.call("fw_select", torch.ones(1))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(
            "hullft_ops: torch makes no tensor of 8 bytes on cuda:0: CUDA error: an illegal"
        ),
        RuntimeError("fw_select: CUDA error: out of memory"),
        RuntimeError("fw_select: this torch was built without CUDA"),
        RuntimeError("fw_select: no current stream of device 1"),
        RuntimeError("knn_select: pool is empty"),
        RuntimeError(""),
        torch.OutOfMemoryError("fw_select: nothing left"),
    ],
)
def test_other_errors_stay_as_they_are(
    monkeypatch: pytest.MonkeyPatch, error: RuntimeError
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(_ops.ops, "fw_select", fail)
    with pytest.raises(type(error)) as raised:
        _ops.call("fw_select", torch.ones(1))
    assert raised.value is error


@pytest.mark.cpu_only(ON_VALUES)
def test_nan_is_a_value_error_in_this_torch() -> None:
    with pytest.raises(
        ValueError, match="fw_select: pool has NaN or infinity in row 0"
    ):
        hullft_ops.fw_select(torch.full((3, 2), float("nan")), torch.ones(2), 1)
