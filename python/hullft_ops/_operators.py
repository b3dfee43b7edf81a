"""The operators as this package calls them: what they refuse is a ValueError, whatever the torch,
and a lack of memory on CUDA torch's own error.

They throw ``std::invalid_argument`` for bad values. torch hands that on as a ValueError up to 2.13
and as a RuntimeError in 2.15, with the same text.
"""

from collections.abc import Callable
from typing import Any

import torch

from hullft_ops._library import ops

# What csrc/cuda_host/context.* says of the device, and not of an argument.
_OF_THE_DEVICE = ("CUDA error: ", "this torch was built without CUDA", "no current stream of ")


def refusal(op: str, error: RuntimeError) -> ValueError | None:
    """The ValueError that the operator threw, or None where the error is of another kind."""
    message = str(error).splitlines()[0] if str(error) else ""
    prefix = f"{op}: "
    if type(error) is not RuntimeError or not message.startswith(prefix):
        return None
    if message.removeprefix(prefix).startswith(_OF_THE_DEVICE):
        return None
    return ValueError(message)


# What csrc/allocation.h says of it.
_NO_MEMORY = "hullft_ops: CUDA out of memory: "


def no_memory(op: str, error: RuntimeError) -> torch.OutOfMemoryError | None:
    """The error of an operator that CUDA gives no memory, or None where it is of another kind."""
    if type(error) is not RuntimeError or not str(error).startswith(_NO_MEMORY):
        return None
    return torch.OutOfMemoryError(str(error).splitlines()[0].replace("hullft_ops", op, 1))


def _operator(name: str) -> Callable[..., Any]:
    packet = getattr(ops, name)

    def call(*arguments: Any, **options: Any) -> Any:
        if torch.compiler.is_compiling():
            return packet(*arguments, **options)
        try:
            return packet(*arguments, **options)
        except RuntimeError as error:
            translated = refusal(name, error) or no_memory(name, error)
            if translated is None:
                raise
            raise translated from None

    return call


adam_replay_ = _operator("adam_replay_")
adam_replay_check = _operator("adam_replay_check")
fw_lmo = _operator("fw_lmo")
fw_select = _operator("fw_select")
fw_select_indexed = _operator("fw_select_indexed")
grad_accumulate_ = _operator("grad_accumulate_")
integerize = _operator("integerize")
knn_select = _operator("knn_select")
sift_select = _operator("sift_select")
sift_select_indexed = _operator("sift_select_indexed")
