"""Finetuning on a selection, as a user would write it without this package."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


def finetune(
    model: nn.Module,
    passages: Sequence[Sequence[int]],
    counts: Sequence[int],
    *,
    refresh: int,
    groups: Sequence[dict[str, Any]],
    padded_to: int | None = None,
    autocast: torch.dtype | None = None,
) -> None:
    """Adam's steps on each passage, the given number of times.

    With ``padded_to`` it is a plain transformers loop, like the published code: it pads every
    passage, masks the padding out of attention and loss, and clones each fresh gradient, then again
    for every step that reuses it. Without, it is as fast as a plain torch loop can be: passages
    keep their length, Adam is torch's fused one, and a step that reuses a gradient finds it where
    the backward pass left it.

    Args:
        refresh: steps per gradient.
        groups: of parameters, for a new torch.optim.Adam.
        autocast: dtype of the forward pass; None for the model's own.
    """
    is_padded = padded_to is not None
    optimizer = torch.optim.Adam(groups, fused=not is_padded)
    trained = [parameter for group in groups for parameter in group["params"]]
    device = next(model.parameters()).device
    for passage, count in zip(passages, counts, strict=True):
        inputs = _inputs(passage, padded_to or len(passage), device)
        clones: list[torch.Tensor] = []
        for step in range(count):
            if step % refresh == 0:
                optimizer.zero_grad(set_to_none=True)
                with torch.autocast(
                    device.type, dtype=autocast, enabled=autocast is not None
                ):
                    loss = model(**inputs, use_cache=False).loss
                loss.backward()
                if is_padded:
                    clones = [parameter.grad.clone() for parameter in trained]
            elif is_padded:
                for parameter, gradient in zip(trained, clones, strict=True):
                    parameter.grad = gradient.clone()
            optimizer.step()


def _inputs(
    passage: Sequence[int], length: int, device: torch.device
) -> dict[str, torch.Tensor]:
    """Tokens [1, length] and labels; with padding, which the loss leaves out, its mask too."""
    tokens = torch.zeros(1, length, dtype=torch.int64, device=device)
    tokens[0, : len(passage)] = torch.tensor(passage, device=device)
    if length == len(passage):
        return {"input_ids": tokens, "labels": tokens}
    mask = torch.zeros_like(tokens)
    mask[0, : len(passage)] = 1
    labels = tokens.masked_fill(mask == 0, -100)
    return {"input_ids": tokens, "attention_mask": mask, "labels": labels}
