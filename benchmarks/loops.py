"""Finetuning on a selection, as a user would write it without this package."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


def padded_cloning_finetune(
    model: nn.Module,
    passages: Sequence[Sequence[int]],
    counts: Sequence[int],
    *,
    refresh: int,
    groups: Sequence[dict[str, Any]],
    max_length: int,
) -> None:
    """A plain transformers loop, like the published code.

    It pads every passage to ``max_length`` and masks the padding out of attention and loss. It
    clones each fresh gradient, and clones it again for every step that reuses it. The optimizer
    is a new torch.optim.Adam with torch's defaults, of these groups of parameters.
    """
    optimizer = torch.optim.Adam(groups)
    trained = [parameter for group in groups for parameter in group["params"]]
    device = next(model.parameters()).device
    for passage, count in zip(passages, counts, strict=True):
        length = len(passage)
        input_ids = torch.zeros(1, max_length, dtype=torch.int64, device=device)
        input_ids[0, :length] = torch.tensor(passage, device=device)
        attention_mask = torch.zeros_like(input_ids)
        attention_mask[0, :length] = 1
        labels = input_ids.masked_fill(attention_mask == 0, -100)
        cached: list[torch.Tensor] = []
        for step in range(count):
            if step % refresh == 0:
                optimizer.zero_grad()
                loss = model(
                    input_ids=input_ids, attention_mask=attention_mask, labels=labels
                ).loss
                loss.backward()
                cached = [_gradient(parameter).clone() for parameter in trained]
            else:
                for parameter, gradient in zip(trained, cached, strict=True):
                    parameter.grad = gradient.clone()
            optimizer.step()


def _gradient(parameter: nn.Parameter) -> torch.Tensor:
    if parameter.grad is None:
        raise RuntimeError(
            f"padded_cloning_finetune: a parameter of shape {list(parameter.shape)} has no gradient"
        )
    return parameter.grad


def torch_finetune(
    model: nn.Module,
    passages: Sequence[Sequence[int]],
    counts: Sequence[int],
    *,
    refresh: int,
    groups: Sequence[dict[str, Any]],
    autocast: torch.dtype | None,
) -> None:
    """The same steps, as fast as a plain torch loop can take them.

    Every passage keeps its own length, Adam is torch's fused one, and a step that reuses a gradient
    finds it where the backward pass left it.

    Args:
        groups: of parameters, for the optimizer.
        autocast: dtype of the forward pass; None for the model's own.
    """
    optimizer = torch.optim.Adam(groups, fused=True)
    device = next(model.parameters()).device
    for passage, count in zip(passages, counts, strict=True):
        tokens = torch.tensor([passage], device=device)
        for step in range(count):
            if step % refresh == 0:
                optimizer.zero_grad(set_to_none=True)
                with torch.autocast(
                    device.type, dtype=autocast, enabled=autocast is not None
                ):
                    loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
                loss.backward()
            optimizer.step()
