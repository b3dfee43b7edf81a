"""Testing by computation whether a model is a causal language model."""

from contextlib import AbstractContextManager
from itertools import islice
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hullft_ops._checks import check_member
from hullft_ops.ttft.model.context import unwrapped, virtual_tokens
from hullft_ops.ttft.model.exclusive import Claim
from hullft_ops.ttft.model.snapshot import ModelSnapshot

# The largest relative rounding of logits, if no gradient can tell: a few steps of bfloat16.
_ROUNDING = 2**-5

_causal: "WeakSet[nn.Module]" = WeakSet()
# The highest id, with the tokenizer's size at that time.
_highest: "WeakKeyDictionary[PreTrainedTokenizerBase, tuple[int, int]]" = (
    WeakKeyDictionary()
)


def check_causal(
    function: str, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase"
) -> None:
    """Refuse a model that lacks ids of the tokenizer, or whose logits for the first of two tokens
    depend on the last. A model is probed once. The ValueError says which class would do. TypeError
    if either has another type."""
    loaded = "a causal language model of transformers, as load_model returns"
    check_member(function, "model", model, "config", loaded)
    loaded = "a tokenizer of transformers, as load_model returns"
    check_member(function, "tokenizer", tokenizer, "get_vocab", loaded)
    highest = highest_id(tokenizer)
    try:
        rows = getattr(model.get_input_embeddings(), "num_embeddings", None)
    except (AttributeError, NotImplementedError):
        rows = None
    _check_ids(function, model, highest, rows if isinstance(rows, int) else None)
    if model in _causal:
        return
    virtual_tokens(function, model)
    # It restores modes, buffers and whatever a forward notes on the model.
    snapshot = ModelSnapshot(model, ())
    with Claim(model):
        snapshot.save()
        try:
            model.train(False)
            _probe(function, model, tokenizer, highest)
        # A model that is incomplete, or has no memory left, fails with a better message in use.
        except RuntimeError:
            return
        finally:
            snapshot.restore()
    _causal.add(model)


def _probe(
    function: str,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    highest: int,
) -> None:
    one, other = _two_texts(model, tokenizer, highest)
    try:
        logits = getattr(_run(model, one), "logits", None)
    except (TypeError, ValueError) as error:
        raise _refusal(
            function, model, "which cannot run on input_ids alone"
        ) from error
    if logits is None:
        raise _refusal(function, model, "which gives no logits")
    if logits.shape[:-1] != one.shape:
        shape, count = tuple(logits.shape), one.shape[1]
        raise _refusal(
            function, model, f"whose logits have shape {shape} for {count} tokens"
        )
    _check_ids(function, model, highest, logits.shape[-1])
    first, again = logits[0, 0], _run(model, other).logits[0, 0]
    # The loss complains about NaN.
    if torch.equal(first.nan_to_num(), again.nan_to_num()):
        return
    # An expert multiplies all tokens that chose it at once, so later tokens may change how a causal
    # model rounds a token. The gradient of a masked token is exactly 0.
    sees = _has_gradient(model, one, highest)
    if sees is None:
        sees = bool((first - again).abs().max() > _ROUNDING * first.abs().max())
    if sees:
        raise _refusal(
            function, model, "whose logits for the first token change with the last"
        )


def _run(model: "PreTrainedModel", tokens: torch.Tensor) -> Any:
    with torch.no_grad(), _same_draws(model):
        return model(input_ids=tokens, use_cache=False)


def _same_draws(model: "PreTrainedModel") -> AbstractContextManager[None]:
    # Some models draw even in eval mode. The caller's random numbers stay as they are.
    return torch.random.fork_rng([model.device] if model.device.type == "cuda" else [])


def _has_gradient(
    model: "PreTrainedModel", tokens: torch.Tensor, highest: int
) -> bool | None:
    """Whether the first token's logits depend on the last token's embedding; None if unknown."""
    read: list[torch.Tensor] = []

    def note(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        read.append(output.detach().requires_grad_())
        return read[-1]

    # An encoder and a decoder each have one, with the same weight.
    tables = [m for m in model.modules() if isinstance(m, nn.Embedding)]
    handles = [
        m.register_forward_hook(note) for m in tables if m.num_embeddings > highest
    ]
    try:
        with torch.inference_mode(False), torch.enable_grad(), _same_draws(model):
            logits = model(input_ids=tokens.clone(), use_cache=False).logits
            gradients = torch.autograd.grad(
                logits[0, 0].float().sum(), read, allow_unused=True
            )
    # Raised for weights made in inference mode, and for kernels without a backward pass.
    except RuntimeError:
        return None
    finally:
        for handle in handles:
            handle.remove()
    return (
        any(g is not None and bool(g[..., -1, :].any()) for g in gradients)
        if read
        else None
    )


def _two_texts(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", highest: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Two texts of two tokens. Only the last differs; none is special, as models may mask those."""
    special = {*tokenizer.all_special_ids, getattr(model.config, "pad_token_id", None)}
    middle = highest // 2
    ordinary = (
        i for i in (*range(middle, highest + 1), *range(middle)) if i not in special
    )
    first, last = (*islice(ordinary, 2), 0, min(1, highest))[:2]
    one, other = torch.tensor([[[first, first]], [[first, last]]], device=model.device)
    return one, other


def highest_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The highest id of the vocabulary, which may have gaps."""
    known = _highest.get(tokenizer)
    if known is None or known[0] != len(tokenizer):
        known = _highest[tokenizer] = (
            len(tokenizer),
            max(tokenizer.get_vocab().values()),
        )
    return known[1]


def _check_ids(
    function: str, model: "PreTrainedModel", highest: int, count: int | None
) -> None:
    if count is not None and highest >= count:
        inner = unwrapped(model)
        served = _served(inner)
        raise ValueError(
            f"{function}: model must have every id of the tokenizer, up to {highest}, got "
            f"{type(inner).__name__} with {count}: load the tokenizer that belongs to it"
            f"{f', or {served}' if served else ''}"
        )


def _refusal(function: str, model: "PreTrainedModel", reason: str) -> ValueError:
    inner = unwrapped(model)
    return ValueError(
        f"{function}: model must be a causal language model, got {type(inner).__name__}, "
        f"{reason}: {_served(inner) or f'transformers has none for {inner.config.model_type}'}"
    )


def _served(model: "PreTrainedModel") -> str | None:
    """How to load a causal model of that type, unless it was loaded that way."""
    from transformers.models.auto import modeling_auto

    config = model.config
    name = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    # A model that decodes for an encoder is a decoder by its class.
    by_flag = getattr(config, "is_decoder", None) is False
    by_flag = by_flag and not getattr(config, "is_encoder_decoder", False)
    if name is None or (name == type(model).__name__ and not by_flag):
        return None
    return f"load it as {name}{' with is_decoder=True' if by_flag else ''}"
