"""What tells the weights of one model from those of another."""

import hashlib
from collections.abc import Mapping

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


def weights_digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """The SHA-256 of names, dtypes, shapes and every byte of the tensors, in hexadecimal."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        # Without a copy, if it lies on the CPU in one piece.
        plain = tensor.detach().cpu().contiguous()
        digest.update(plain.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
