"""Random tensors in the shapes of models' parameters, without the models."""

from collections.abc import Sequence

import torch

# GPT-2's, 124 M elements in all.
GPT2_TENSORS, GPT2_TOTAL = 148, 124_439_808


def gpt2_shapes() -> list[torch.Size]:
    """The 148 parameters of GPT-2 (124 M)."""
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2Config())
    return [parameter.shape for parameter in model.parameters()]


def even_shapes(tensors: int, total: int) -> list[torch.Size]:
    """Equal vectors."""
    return [torch.Size([total // tensors])] * tensors


def random_tensors(
    shapes: Sequence[torch.Size], scale: float, device: torch.device, seed: int
) -> list[torch.Tensor]:
    """float32, normally distributed. The same seed and device give the same values."""
    generator = torch.Generator(device).manual_seed(seed)
    return [
        scale
        * torch.randn(shape, generator=generator, device=device, dtype=torch.float32)
        for shape in shapes
    ]
