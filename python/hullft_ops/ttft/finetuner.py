"""Adapting a language model to a prompt, for as long as a with block.

The method is Khamis and Maalouf, *Efficient Test-Time Finetuning of LLMs via Convex
Reconstruction and Gradient Caching*, arXiv:2605.30337: support texts by convex reconstruction of
the prompt's embedding, and every gradient used for up to ``refresh`` optimizer steps.
"""

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

import hullft_ops
from hullft_ops._checks import check_integer, check_variant
from hullft_ops.ttft.context import context_length
from hullft_ops.ttft.datastore import Datastore
from hullft_ops.ttft.embedding import Embedder
from hullft_ops.ttft.loss import next_token_losses
from hullft_ops.ttft.modes import modes_restored
from hullft_ops.ttft.snapshot import ModelSnapshot
from hullft_ops.ttft.support import METHODS, Support, SupportSelector


@dataclass(frozen=True)
class AdaptationReport:
    """What one adaptation did, in plain numbers.

    Attributes:
        method, n_select, refresh: as the finetuner was given them.
        support_size: number of different texts.
        indices: their positions in the datastore, largest weight first.
        weights: their convex weights.
        counts: optimizer steps for each; the sum is ``n_select``.
        residual: distance from the prompt's embedding to the weighted mean.
        gap: Frank-Wolfe gap over the pool.
        seconds_embed: wall-clock seconds to embed the prompt,
        seconds_search: to find its neighbours,
        seconds_select: to select among them,
        seconds_finetune: to tokenize the support and train.
        forward_backward_passes: gradients computed.
        optimizer_steps: Adam steps taken, replays included.
        losses: mean loss per token, in nats, of each pass in order.
    """

    method: str
    n_select: int
    refresh: int
    support_size: int
    indices: list[int]
    weights: list[float]
    counts: list[int]
    residual: float
    gap: float
    seconds_embed: float
    seconds_search: float
    seconds_select: float
    seconds_finetune: float
    forward_backward_passes: int
    optimizer_steps: int
    losses: list[float]

    def to_dict(self) -> dict[str, Any]:
        """The same, as a dictionary that `json.dumps` takes."""
        return asdict(self)


class TestTimeFinetuner:
    """Finetunes a causal language model on a prompt's neighbours, and undoes it.

    Every parameter with ``requires_grad`` is trained: all of a plain model, the adapters alone of
    a PEFT model. Texts are cut to the context, never padded. Training runs in eval mode: dropout
    is off, which makes an adaptation repeatable and a replayed gradient the one that would be
    computed again, and so is gradient checkpointing. The optimizer is Adam with a fresh state for
    every prompt.

    Args:
        model: any ``AutoModelForCausalLM``, or a PEFT model around one. To move or cast it after
            its first adaptation, make a new finetuner: this one keeps an optimizer for it.
        tokenizer: its tokenizer.
        store: where the neighbours come from.
        embedder: embeds prompts; the one that the store was built with.
        n_select: optimizer steps per prompt.
        refresh: optimizer steps per gradient; an example with c steps takes ceil(c / refresh)
            forward-backward passes.
        method: "hullft" for `hullft_ops.fw_select_indexed` over the pool, "knn" for a step on each
            of the ``n_select`` nearest.
        variant: Frank-Wolfe variant of "hullft".
        pool_size: how many neighbours to select from; all of a smaller store.
        lr: Adam's learning rate.
        max_length: tokens of a text to train on; the model's context when None.

    Raises:
        TypeError: an argument that counts is not an int.
        ValueError: an argument out of range, an unknown method or variant, an embedder that is not
            the store's, a model without trainable parameters, or one whose context is not known.
    """

    # pytest takes every class whose name begins like this one's for a test.
    __test__ = False

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        store: Datastore,
        embedder: Embedder,
        *,
        n_select: int = 50,
        refresh: int = 2,
        method: str = "hullft",
        variant: str = "vanilla",
        pool_size: int = 200,
        lr: float = 5e-5,
        max_length: int | None = None,
    ) -> None:
        check_integer("TestTimeFinetuner", "n_select", n_select, 1)
        check_integer("TestTimeFinetuner", "refresh", refresh, 1)
        check_integer("TestTimeFinetuner", "pool_size", pool_size, 1)
        check_variant("TestTimeFinetuner", variant)
        _check_method(method, n_select, min(pool_size, len(store)))
        _check_embedder(store, embedder)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not trained:
            raise ValueError(
                "TestTimeFinetuner: model must have a parameter with requires_grad, got none; "
                "PEFT adapters are loaded with is_trainable=True"
            )
        self.model = model
        self.tokenizer = tokenizer
        self.store = store
        self.n_select = n_select
        self.refresh = refresh
        self.method = method
        self._max_length = context_length("TestTimeFinetuner", model, tokenizer, max_length)
        self._optimizer = hullft_ops.ReplayAdam(trained, lr=lr)
        self._snapshot = ModelSnapshot(model, trained)
        self._selector = SupportSelector(
            store, embedder, self._tokenize, n_select, method, variant, pool_size
        )
        self._in_use = threading.Lock()

    def select(self, prompt: str) -> Support:
        """What `adapted` would train on, without training.

        A text of fewer than 2 tokens cannot be trained on. Should one be chosen, it leaves the
        pool and the selection is made anew, so that the steps still add up to ``n_select``.

        Raises:
            TypeError: prompt is not a str.
            ValueError: prompt is blank, or too few texts of the pool can be trained on.
        """
        return self._selector.select(prompt)

    @contextmanager
    def adapted(self, prompt: str) -> Iterator[AdaptationReport]:
        """The model adapted to ``prompt`` inside the with block, and as it was after it.

        On exit, also by an exception in the block or while adapting, parameters and buffers have
        the bits they had before, in the same storage; so have gradients, ``requires_grad`` flags
        and modes. The prompt is only embedded, so it may be longer than the model's context.

        Raises:
            TypeError: prompt is not a str.
            ValueError: prompt is blank, or too few texts of the pool can be trained on.
            RuntimeError: this finetuner is adapting already, or a loss is not finite.
        """
        if not self._in_use.acquire(blocking=False):
            raise RuntimeError("TestTimeFinetuner: the model is adapted to another prompt already")
        try:
            support = self.select(prompt)
            with self._snapshot.restored():
                yield self._finetune(support)
        finally:
            self._in_use.release()

    def _tokenize(self, text: str) -> list[int]:
        encoding = self.tokenizer(text, truncation=True, max_length=self._max_length)
        return list(encoding["input_ids"])

    def _finetune(self, support: Support) -> AdaptationReport:
        start = perf_counter()
        losses = self._train(support)
        seconds = perf_counter() - start + support.seconds.tokenize
        return AdaptationReport(
            method=self.method,
            n_select=self.n_select,
            refresh=self.refresh,
            support_size=len(support.indices),
            indices=support.indices,
            weights=support.weights,
            counts=support.counts,
            residual=support.residual,
            gap=support.gap,
            seconds_embed=support.seconds.embed,
            seconds_search=support.seconds.search,
            seconds_select=support.seconds.select,
            seconds_finetune=seconds,
            forward_backward_passes=len(losses),
            optimizer_steps=sum(support.counts),
            losses=losses,
        )

    def _train(self, support: Support) -> list[float]:
        """Train on the support, example by example; the loss of every pass."""
        examples: list[int] = []
        losses: list[torch.Tensor] = []
        self._optimizer.reset()
        # The caller may be in a mode that records no gradients, as generation is.
        with modes_restored(self.model), torch.inference_mode(False), torch.enable_grad():
            self.model.train(False)
            for index, ids, count in zip(
                support.indices, support.input_ids, support.counts, strict=True
            ):
                tokens = torch.tensor(ids, device=self.model.device)
                for done in range(0, count, self.refresh):
                    losses.append(self._pass(tokens, repeats=min(self.refresh, count - done)))
                    examples.append(index)
            self._optimizer.zero_grad(set_to_none=True)
        # Read together and last: reading each would stall a GPU every time, and reading none would
        # leave its work out of the time.
        values: list[float] = torch.stack(losses).tolist()
        _check_losses(values, examples)
        return values

    def _pass(self, tokens: torch.Tensor, repeats: int) -> torch.Tensor:
        self._optimizer.zero_grad(set_to_none=True)
        loss = next_token_losses(self.model, tokens).mean()
        torch.autograd.backward(loss)
        self._optimizer.step(repeats=repeats)
        return loss.detach()


def _check_method(method: str, n_select: int, pool: int) -> None:
    if method not in METHODS:
        raise ValueError(
            f"TestTimeFinetuner: method must be one of {', '.join(METHODS)}, got {method!r}"
        )
    if method == "knn" and n_select > pool:
        raise ValueError(
            f"TestTimeFinetuner: n_select must be at most the pool for method 'knn', "
            f"got {n_select} of {pool}"
        )


def _check_embedder(store: Datastore, embedder: Embedder) -> None:
    manifest = store.manifest
    if (embedder.name, embedder.dim) != (manifest.embedder, manifest.dim):
        raise ValueError(
            f"TestTimeFinetuner: embedder is {embedder.name} of dim {embedder.dim}, the datastore "
            f"was built with {manifest.embedder} of dim {manifest.dim}"
        )


def _check_losses(losses: list[float], examples: list[int]) -> None:
    for loss, index in zip(losses, examples, strict=True):
        if not math.isfinite(loss):
            raise RuntimeError(
                f"TestTimeFinetuner: the loss of text {index} of the datastore is {loss}; "
                "the model has been restored"
            )
