"""What tells the weights of one model from those of another."""

import hashlib
from typing import Any

import torch
from torch import nn

# Enough to tell two models apart. Reading all of a large model takes longer than a prompt.
_VALUES_OF_TENSOR = 1024


def sampled_digest(model: nn.Module) -> "hashlib._Hash":
    """A SHA-256, to go on with, of names, dtypes, shapes and the first values of each tensor."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        head = tensor.detach().flatten()[:_VALUES_OF_TENSOR].float().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(head.numpy().tobytes())
    return digest


def weights_digest(model: nn.Module) -> str:
    """The SHA-256 of every byte of the parameters and buffers, in hexadecimal."""
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(bytes_of(tensor))
    return digest.hexdigest()


def bytes_of(tensor: torch.Tensor) -> Any:
    """The tensor's bytes as an array, without a copy if it lies on the CPU in one piece."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
