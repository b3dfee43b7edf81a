"""Adapting a language model to a prompt for the length of a with block."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hullft_ops._checks import check_integer
from hullft_ops.ttft.adaptation import Adaptation
from hullft_ops.ttft.adaptation_cache import DEFAULT_BYTES, AdaptationCache
from hullft_ops.ttft.adapted_model import AdaptedModel
from hullft_ops.ttft.experts.folder import Experts
from hullft_ops.ttft.experts.merge import ExpertMerger, add
from hullft_ops.ttft.model.causal import check_causal
from hullft_ops.ttft.model.context import context_length, known_context
from hullft_ops.ttft.model.exclusive import Claim
from hullft_ops.ttft.model.generation import continuation, tokens_to_continue
from hullft_ops.ttft.model.memory import out_of_memory_explained, training_advice
from hullft_ops.ttft.model.prefix import Prefix
from hullft_ops.ttft.model.scoring import BitsPerByte, score_behind
from hullft_ops.ttft.model.snapshot import ModelSnapshot
from hullft_ops.ttft.report import AdaptationReport
from hullft_ops.ttft.retrieval.methods import (
    MAX_STEPS,
    SelectionMethod,
    method_name,
    selection_method,
)
from hullft_ops.ttft.retrieval.support import Support, SupportSelector
from hullft_ops.ttft.store.base import Store
from hullft_ops.ttft.store.embedding import Embedder, check_embedder
from hullft_ops.ttft.support_training import TrainedAdapter, train_adapters
from hullft_ops.ttft.training.checks import (
    autocast_dtype,
    check_limit,
    check_same_trained,
    checked_trained,
)
from hullft_ops.ttft.training.steps import StageClock, refreshes_of
from hullft_ops.ttft.training.trainer import SupportTrainer


class TestTimeFinetuner:
    """Finetunes a causal language model on a prompt's neighbours, and undoes it.

    The method is that of Khamis and Maalouf, *Efficient Test-Time Finetuning of LLMs via Convex
    Reconstruction and Gradient Caching*, arXiv:2605.30337.

    It trains every parameter with ``requires_grad``: all of a plain model, only the adapters of a
    PEFT model. Training runs in eval mode, without dropout or gradient checkpointing, and with a
    fresh state of Adam. The CPU repeats an adaptation exactly; torch's attention on CUDA may not.

    Memory: at most five times the trained parameters (the parameters, gradients, Adam's two moments
    and the copy to restore), the frozen parameters once, and the activations of one text. On a CPU
    it is four times and the largest gradient, unless gradients are clipped or kept. Moments, copy
    and CUDA graphs stay for the next prompt. bfloat16 autocast adds half a parameter size,
    "interleaved" with ``refresh`` above 1 a gradient for every text.

    Args:
        model, tokenizer: any ``AutoModelForCausalLM``, or a PEFT model around one. If you move or
            cast it after its first adaptation, make a new finetuner.
        store, embedder: the texts, and the embedder that built the store.
        n_select: optimizer steps per prompt, 100,000 at most. With 0, and no experts, there is no
            copy of the model, so nothing that the block changes is undone.
        refresh: optimizer steps per gradient, or a function of a text's steps that returns it. A
            text with c steps takes ceil(c / refresh) forward-backward passes.
        method: "hullft" for `hullft_ops.fw_select_indexed` over the pool, "sift" for
            `hullft_ops.sift_select_indexed`, "knn" or "random" for a step on each of the nearest
            texts or of texts drawn from the pool, or any `SelectionMethod`. Warns if the pool has
            fewer texts than there are steps.
        variant: Frank-Wolfe variant of "hullft".
        pool_size: how many neighbours to select from.
        lr: Adam's learning rate.
        max_length: tokens to cut the texts to; None for the model's context.
        dtype: "bfloat16" to train under autocast; None for the model's own. Warns on a processor
            without bfloat16 instructions.
        order: "grouped" takes a text's steps one after the other, "interleaved" goes round the
            texts and keeps a gradient of each for its replays.
        schedule: "constant", or "linear" or "cosine" to fall towards 0 over the prompt's steps.
        max_grad_norm: norm to clip each gradient to before its steps; None for no limit. Any
            number, even ``math.inf``, makes all gradients of a pass before the first step, for
            models whose backward pass uses weights that it makes no gradients of.
        graphs: on CUDA, capture a pass for each multiple of 64 tokens. Warns if it cannot.
        context: how many of the nearest texts stand before the prompt, nearest last, while the
            finetuner scores or continues it. Texts are never cut; the farthest are dropped
            until the prompt fits, or half of the model's context is free.
        experts: before the first step, the finetuner adds those of the prompt's region to the
            trained weights.
        n_experts: how many of them to merge at most; 0 for none.
        expert_scale: multiplies the merged difference.
        expert_temperature: None to weigh them by `hullft_ops.fw_select` over the centroids. A
            number for a softmax of the cosine similarities divided by it.
        cache_dir: folder that keeps trained parameters, so that a prompt that comes again gets the
            same bits without a pass. None to keep nothing.
        cache_bytes: the folder's largest size; the least recently used entries are deleted.
        on_step: called with the number of steps so far: 0 before the first, then after those with
            each gradient. Not for what ``cache_dir`` has. ``seconds`` counts its time too.

    TypeError or ValueError if an argument has the wrong type or is out of range, embedder or
    experts do not belong to the store, or the model cannot be trained, or not with this tokenizer.
    """

    # pytest takes every class whose name begins with "Test" for a test.
    __test__ = False

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        store: Store,
        embedder: Embedder,
        *,
        n_select: int = 50,
        refresh: int | Callable[[int], int] = 2,
        method: str | SelectionMethod = "hullft",
        variant: str = "vanilla",
        pool_size: int = 200,
        lr: float = 5e-5,
        max_length: int | None = None,
        dtype: str | torch.dtype | None = None,
        order: str = "grouped",
        schedule: str = "constant",
        max_grad_norm: float | None = None,
        graphs: bool = True,
        context: int = 0,
        experts: Experts | None = None,
        n_experts: int = 4,
        expert_scale: float = 1.0,
        expert_temperature: float | None = None,
        cache_dir: str | Path | None = None,
        cache_bytes: int = DEFAULT_BYTES,
        on_step: Callable[[int], object] | None = None,
    ) -> None:
        n_select = check_integer(
            "TestTimeFinetuner", "n_select", n_select, 0, MAX_STEPS
        )
        if not callable(refresh):
            refresh = check_integer("TestTimeFinetuner", "refresh", refresh, 1)
        pool_size = check_integer("TestTimeFinetuner", "pool_size", pool_size, 1)
        context = check_integer("TestTimeFinetuner", "context", context, 0)
        chosen = selection_method(method, variant)
        check_embedder("TestTimeFinetuner", embedder, store)
        check_causal("TestTimeFinetuner", model, tokenizer)
        trained = checked_trained(model)
        self.model = model
        self.tokenizer = tokenizer
        self.store = store
        self.n_select = n_select
        self.refresh = refresh
        self.method = method_name(chosen)
        self.order = order
        self.context = context
        self._max_length = context_length(
            "TestTimeFinetuner", model, tokenizer, max_length
        )
        # The length of training texts limits what the model reads only if nothing else does.
        self._context = (
            known_context("TestTimeFinetuner", model, tokenizer) or self._max_length
        )
        autocast = autocast_dtype("TestTimeFinetuner", dtype, model.device)
        settings: dict[str, Any] = {"lr": lr, "order": order, "schedule": schedule}
        settings |= {"max_grad_norm": max_grad_norm, "autocast": autocast}
        self._settings = settings
        self._reported = {
            n: vars(self)[n] for n in ("method", "n_select", "refresh", "order")
        }
        self._trainer = SupportTrainer(
            model, trained, **settings, graphs=graphs, on_step=on_step
        )
        self._merger = ExpertMerger(
            model, trained, store, experts, n_experts, expert_scale, expert_temperature
        )
        merged = {
            "experts": None if experts is None else (experts.digest, expert_scale)
        }
        self._cache = AdaptationCache(cache_dir, cache_bytes, model, settings | merged)
        self._trained = trained
        self._snapshot = ModelSnapshot(model, trained)
        self._prefix = Prefix()
        lengths = self._max_length, context, self._context
        selecting = n_select, chosen, pool_size, *lengths, self._merger.weigh
        self._selector = SupportSelector(store, embedder, tokenizer, *selecting)

    def __setattr__(self, name: str, value: object) -> None:
        if not name.startswith("_") and name in vars(self):
            raise AttributeError(
                f"TestTimeFinetuner: {name} cannot be changed, make a new finetuner"
            )
        super().__setattr__(name, value)

    def __getstate__(self) -> object:
        raise TypeError(
            "TestTimeFinetuner: it can be neither pickled nor copied: make one in each process, of "
            "the model and datastore there"
        )

    def share_memory_with(self, other: "TestTimeFinetuner") -> None:
        """Use the other's copy of the weights and its optimizer state. One at a time may adapt.

        ValueError unless the other finetunes the same parameters of the same model.
        """
        if other.model is not self.model:
            raise ValueError(
                "TestTimeFinetuner: only finetuners of one model can share memory"
            )
        self._trainer.share_buffers_with(other._trainer)
        self._snapshot = other._snapshot

    def select(self, prompt: str) -> Support:
        """The support that `adapted` would train on, without training.

        If the method chooses a text of fewer than 2 tokens, which cannot be trained on, the text
        leaves the pool and the method chooses again.

        TypeError or ValueError if prompt is not a str or blank, or no text has enough tokens.
        torch.OutOfMemoryError if memory ran out, on any device.
        """
        [support] = self._selector.select([prompt])
        return support

    def select_batch(self, prompts: Sequence[str]) -> list[Support]:
        """`select` for many prompts, in one go; it raises the same.

        The supports equal those of `select` if the embedder's vectors are the same in a batch.
        `adapted` takes a support in place of its prompt.
        """
        return self._selector.select(prompts)

    def adapted(
        self, prompt: str | Support | TrainedAdapter, *, seconds: float | None = None
    ) -> AbstractContextManager[AdaptationReport]:
        """Adapt the model to ``prompt`` for the length of a with block, and restore it afterwards.

        On exit, even after an exception in the block or while adapting, parameters and buffers have
        the same bits as before, in the same storage. Gradients, ``requires_grad`` flags, modes and
        plain attributes of modules are restored too. The guide lists what cannot be undone, and
        describes signals and interrupts.

        Other threads may not adapt, score or continue the model meanwhile. If they already do, this
        waits. Enter and leave the block in the same thread.

        Args:
            prompt: a text of any length, a support from `select` or `select_batch`, or an adapter
                from `adapt_many`, which takes no steps.
            seconds: budget from entering the block to its first line, except for writing
                ``cache_dir`` and reading the texts in the context; None for no limit. Training
                stops before a pass that it expects to end late, and ``report.steps_left_out``
                counts the other steps.

        Raises:
            TypeError, ValueError: as `select`, or seconds is not a number above 0.
            RuntimeError: the model, or one that shares modules or trained parameters with it, is
                already adapted; it was moved or cast since the first adaptation; other parameters
                have ``requires_grad`` than when this finetuner was made; the loss depends on none
                of them; or the block made a change that cannot be undone.
            NonFiniteLossError: a loss is not finite; a RuntimeError.
            torch.OutOfMemoryError: memory ran out while adapting, on any device.
        """
        return Adaptation(
            Claim(self.model, self._trained),
            AdaptedModel(
                self.model, self.tokenizer, self._trained, self._snapshot, self._context
            ),
            partial(self._adapt, prompt),
            seconds=check_limit("seconds", seconds),
            forget=self._prefix.clear,
        )

    def adapt_many(
        self, prompts: Sequence[str] | Sequence[Support], *, batch_size: int = 16
    ) -> list[TrainedAdapter]:
        """Train an adapter for each prompt, many side by side.

        The model must be a PEFT model that trains plain LoRAs of linear layers, and nothing else.
        Each prompt's adapter takes the steps that `adapted` would take, without ``cache_dir``: the
        two agree up to rounding. A pass reads the next text of every prompt, each row through its
        own adapter. Other threads may use the model meanwhile.

        Args:
            prompts: texts, or supports from `select_batch`.
            batch_size: prompts to train at a time. Each takes four times the adapter's parameters,
                and the activations of a text.

        Returns:
            Adapters in the order of the prompts. `adapted` takes each in place of its prompt.

        Raises:
            TypeError, ValueError: as `select`; batch_size is not an int or below 1; or other
                parameters are trained.
            RuntimeError: the model is adapted at the moment, or a layer reads no batch.
            NonFiniteLossError, torch.OutOfMemoryError: as `adapted`; the first names the prompt.
        """
        batch_size = check_integer("adapt_many", "batch_size", batch_size, 1)
        held: Any = prompts if isinstance(prompts, str) else list(prompts)
        are_selected = bool(held) and all(
            isinstance(prompt, Support) for prompt in held
        )
        supports: list[Support] = held if are_selected else self.select_batch(held)
        check_same_trained(self.model, self._trained)
        advice = self._advice(
            [text for support in supports for text in support.input_ids]
        )
        advice += (
            f"; a lower batch_size (it is {batch_size}) trains fewer adapters at a time"
        )
        training = (self.model, self._trained, self._settings)
        with out_of_memory_explained(advice):
            return train_adapters(*training, supports, batch_size, **self._reported)

    def generate(
        self, prompt: str, *, seconds: float | None = None, **generate_kwargs: Any
    ) -> str:
        """Adapt to ``prompt``, continue it, restore the model. Inside a block use `continuation`.

        Of a prompt that is too long, the model reads the last tokens, as many as leave room for the
        new ones. ``seconds`` is as in `adapted`. ``generate_kwargs`` are for ``model.generate``;
        ``max_new_tokens`` defaults to 20. Returns only the continuation, without special tokens.

        Raises what `adapted` raises; ValueError if ``max_new_tokens`` leaves no room for the
        prompt, or ``max_length`` is set.
        """
        tokens_to_continue(self.tokenizer, prompt, self._context, generate_kwargs)
        with self.adapted(prompt, seconds=seconds):
            return self.continuation(prompt, **generate_kwargs)

    def continuation(self, prompt: str, **generate_kwargs: Any) -> str:
        """What the model, as it is now, writes after ``prompt``; arguments as in `generate`.

        The texts in its context come first, as many of the nearest as leave room for the rest.
        """
        generate_kwargs |= {"context": self._context, "prefix": self._prefix}
        return continuation(self.model, self.tokenizer, prompt, **generate_kwargs)

    def score_text(self, text: str) -> BitsPerByte:
        """`hullft_ops.ttft.score_text` of the model as it is now, with the texts in its context."""
        return score_behind(
            self.model, self.tokenizer, text, self._context, self._prefix
        )

    def read_context(
        self, report: AdaptationReport, support: Support
    ) -> AdaptationReport:
        """Put the texts in the context of ``support`` before the prompt, in place of those there.

        Returns the report of an adaptation that had read these texts from the start. RuntimeError
        if this finetuner adapts no model right now.
        """
        if not self._prefix.is_read:
            raise RuntimeError(
                "TestTimeFinetuner: read_context needs an adapted model, got none"
            )
        return self._with_context(report, support)

    def _advice(self, texts: list[list[int]]) -> str:
        limits = self._max_length, self.order, self.n_select, self.context
        return training_advice(texts, *limits)

    def _adapt(
        self,
        prompt: str | Support | TrainedAdapter,
        save: Callable[[], None],
        deadline: float | None,
    ) -> AdaptationReport:
        check_same_trained(self.model, self._trained)
        clock = StageClock(self.model.device)
        if isinstance(prompt, TrainedAdapter):
            return self._with_context(
                prompt.put_into(self._trained, save, clock), prompt.support
            )
        support = prompt if isinstance(prompt, Support) else self.select(prompt)
        if support.indices and not self.n_select:
            raise ValueError(
                "TestTimeFinetuner: n_select must be above 0 for this support, got 0"
            )
        with out_of_memory_explained(self._advice(support.input_ids)):
            refreshes = refreshes_of(self.refresh, support.counts)
            entry = self._cache.entry(support, refreshes)
            additions = self._merger.read(
                support.expert_indices, support.expert_weights, clock
            )
            if support.indices or additions:
                with clock.of("save"):
                    save()
            add(additions, clock)
            start, before = perf_counter(), self._trainer.n_full_logits
            texts = support.input_ids, support.indices, support.counts
            train = partial(self._trainer.train, *texts, refreshes, clock, deadline)
            losses, taken, from_cache = self._cache.train(entry, support.counts, train)
            report = AdaptationReport.of(
                support,
                clock,
                losses,
                taken,
                refreshes,
                from_cache=from_cache,
                seconds=perf_counter() - start,
                full_logits_passes=self._trainer.n_full_logits - before,
                **self._reported,
            )
            return self._with_context(report, support)

    def _with_context(
        self, report: AdaptationReport, support: Support
    ) -> AdaptationReport:
        clock = StageClock(self.model.device)
        with clock.of("prefill"):
            self._prefix.read(self.model, self.tokenizer, support.context_ids)
        return replace(
            report,
            context_indices=support.context_indices,
            prefix_ids=self._prefix.ids,
            seconds_prefill=clock.seconds("prefill"),
        )
