"""Random tensors in the shapes of models' parameters, without the models."""

from collections.abc import Sequence

import torch

# GPT-2's, 124 M elements in all.
GPT2_TENSORS, GPT2_TOTAL = 148, 124_439_808


def gpt2_shapes() -> list[torch.Size]:
    """The 148 parameters of GPT-2 (124 M)."""
    d = 768
    attention = [[d], [d], [d, 3 * d], [3 * d], [d, d], [d]]
    mlp = [[d], [d], [d, 4 * d], [4 * d], [4 * d, d], [d]]
    embeddings = [[50_257, d], [1024, d]]
    return [
        torch.Size(shape) for shape in (*embeddings, *12 * (attention + mlp), [d], [d])
    ]


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
