"""Adapting a language model to a prompt for the length of a with block."""

import warnings
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hullft_ops._checks import check_integer
from hullft_ops.ttft.adaptation import Adaptation
from hullft_ops.ttft.adapter import read_adapter
from hullft_ops.ttft.config import TTFTConfig
from hullft_ops.ttft.contexts import signal_safe
from hullft_ops.ttft.embedding import Embedder
from hullft_ops.ttft.generation import Prompt, continue_prompts, conversation
from hullft_ops.ttft.models.checks import full_window, text_window
from hullft_ops.ttft.models.lora import add_lora
from hullft_ops.ttft.reader import Context, Reader, tokenizer_identity
from hullft_ops.ttft.restore import exclusive, restored
from hullft_ops.ttft.steps import Deadline
from hullft_ops.ttft.store.base import Store, check_embedder
from hullft_ops.ttft.store.format import batches_of_like_length
from hullft_ops.ttft.support import NOTHING, Support, SupportSelector, retrieves
from hullft_ops.ttft.training import SupportTrainer


class TestTimeFinetuner:
    """Finetunes a causal language model on a prompt's neighbours, and undoes it.

    The method is that of Khamis and Maalouf, *Efficient Test-Time Finetuning of LLMs via Convex
    Reconstruction and Gradient Caching*, arXiv:2605.30337.

    It trains every parameter with ``requires_grad``: all of a plain model, only the adapters of a
    PEFT model. Training runs in eval mode, without dropout or gradient checkpointing, and with a
    fresh state of Adam. The CPU repeats an adaptation exactly; torch's attention on CUDA may not.

    Memory: at most five times the trained parameters (the parameters, gradients, Adam's two moments
    and the copy to restore), the frozen parameters once, and the activations of one passage. On a
    CPU it is four times and the largest gradient, unless gradients are clipped or kept. Moments
    and copy stay for the next prompt.

    Args:
        model: any ``AutoModelForCausalLM``, or a PEFT model around one. If you move or cast it, or
            change its frozen weights or what it trains, make a new finetuner.
        tokenizer: the model's tokenizer.
        store: the passages to retrieve; None if n_select, context and ngrams are 0.
        embedder: the embedder that the store was made with; None likewise.
        config: the options; None for the defaults.
        options: fields of `TTFTConfig`, in place of those of ``config``.

    Raises:
        TypeError, ValueError: an option has the wrong type or is out of range, the embedder does
            not belong to the store, or the model cannot be trained, or not with this tokenizer.
    """

    # pytest takes every class whose name begins with "Test" for a test.
    __test__ = False

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        store: Store | None = None,
        embedder: Embedder | None = None,
        config: TTFTConfig | None = None,
        **options: Any,
    ) -> None:
        if store is not None and embedder is not None:
            check_embedder("TestTimeFinetuner", embedder, store)
        self.model = model
        self.tokenizer = tokenizer
        self.store: Any = store
        self._embedder: Any = embedder
        self._trained = _trained_parameters(model)
        # The memory of the parameters' copies, which serves every prompt.
        self._copies: list[Tensor] = []
        # By its folder, the weights that an adapter changes, and PEFT's layers for them.
        self._adapters: dict[str | None, list[tuple[nn.Parameter, Any]]] = {None: []}
        config = replace(config or TTFTConfig(), **options)
        window = full_window(model, tokenizer, config.max_length)
        self.reader = Reader(model, tokenizer, window, config.dtype)
        self._set(config)

    def with_config(self, config: TTFTConfig) -> "TestTimeFinetuner":
        """A finetuner with other options, for which nothing is checked or read again."""
        other = copy(self)
        other._set(config)
        return other

    def _set(self, config: TTFTConfig) -> None:
        max_length = text_window(self.model, self.tokenizer, config.max_length)
        window = full_window(self.model, self.tokenizer, max_length)
        if (window, config.dtype) != (self.reader.window, self.reader.dtype):
            self.reader = Reader(self.model, self.tokenizer, window, config.dtype)
        self.config = config
        if retrieves(config) and (self.store is None or self._embedder is None):
            raise ValueError(
                "TestTimeFinetuner: store and embedder must be given for n_select, context or "
                "ngrams above 0"
            )
        self.selector = SupportSelector(
            self.store, self._embedder, self.reader, config, max_length
        )
        self._trainer = SupportTrainer(self.model, self._trained, config)
        folder = config.adapter
        if folder is not None and folder not in self._adapters:
            self._adapters[folder] = read_adapter(folder, self.reader)

    def select(self, prompt: str) -> Support:
        """The support that `adapted` would train on, without training.

        Raises:
            TypeError, ValueError: the prompt is not a str, or blank.
        """
        return self.selector.select(prompt)

    @signal_safe
    def adapted(
        self, prompt: str | Support, *, seconds: float | None = None
    ) -> Iterator[Adaptation]:
        """Adapt the model to ``prompt`` for the length of a with block, and restore it afterwards.

        On exit, even after an exception or Ctrl-C, the trained parameters, buffers, gradients,
        ``requires_grad`` flags and training modes have the same bits as before, in the same
        storage, and this thread the same grad mode and autocast. Other threads and asyncio tasks
        may not adapt or read the model meanwhile.

        Args:
            prompt: a text, or a support from `select`.
            seconds: budget for retrieval and training, above 0; None for no limit. Training stops
                before a pass that it expects to end late; ``skipped_steps`` counts the rest.

        Raises:
            TypeError, ValueError: the prompt is no text, or the support of another datastore or
                tokenizer.
            RuntimeError: the model is adapted already, or the loss depends on no trained parameter.
            NonFiniteLossError, torch.OutOfMemoryError: training failed. The model is restored.
        """
        deadline = None if seconds is None else Deadline(seconds)
        if isinstance(prompt, Support):
            self._check_support(prompt)
            support = prompt
        else:
            support = self.select(prompt)
        adapter = self._adapters[self.config.adapter]
        trained = self._trained if support.steps or adapter else []
        start = perf_counter()
        with (
            exclusive(self.model, adapts=True),
            restored(self.model, trained, self._copies) as original,
        ):
            add_lora(adapter)
            adaptation = Adaptation(self.reader, self._trainer, support, original)
            # Copying the parameters is a part of it.
            adaptation.seconds["finetune"] += perf_counter() - start
            adaptation.train(self.config.passes, deadline)
            adaptation.read()
            try:
                yield adaptation
            finally:
                adaptation.has_ended = True

    def generate(self, prompt: Any, **options: Any) -> Any:
        """Adapt to ``prompt``, continue it, restore the model.

        Args:
            prompt: a text; or a conversation, a list of messages with a "role" and a "content"; or
                a list of texts and conversations.
            options: those of `generate_each`.

        Returns:
            The continuation, or for a list their list.

        Raises as `adapted` and `Adaptation.generate`.
        """
        if isinstance(prompt, list) and not (prompt and isinstance(prompt[0], dict)):
            texts = dict(self.generate_each(prompt, **options))
            return [texts[position] for position in range(len(prompt))]
        [(_, text)] = self.generate_each([prompt], **options)
        return text

    def generate_each(
        self,
        prompts: Sequence[Prompt],
        *,
        seconds: float | None = None,
        batch_size: int = 8,
        **options: Any,
    ) -> Iterator[tuple[int, str]]:
        """Continue many prompts; yield the position of each and its continuation when it is ready.

        The model adapts to one after the other. Without steps it continues prompts of similar
        length together, and an adapter stays on its weights until the iterator ends or is closed.
        In float32 that gives the texts of one at a time, if nothing is sampled.

        Args:
            prompts: texts and conversations, for whose last message of the user it retrieves.
            seconds: as in `adapted`, for each prompt.
            batch_size: how many to continue together at most; 1 for a model that keeps more of what
                it has read than keys and values, as Mamba does.
            options: as in `Adaptation.generate`.

        Raises as `adapted` and `Adaptation.generate`.
        """
        check_integer("generate", "batch_size", batch_size, 1)
        questions = [conversation(prompt)[1]["content"] for prompt in prompts]
        if self.config.n_select or self.config.train_on_prompt:
            for position, question in enumerate(questions):
                with self.adapted(question, seconds=seconds) as adaptation:
                    text = adaptation.generate(prompts[position], **options)
                yield position, text
            return
        size = batch_size if self.reader.takes_padding else 1
        with self.adapted(NOTHING, seconds=seconds):
            for batch in batches_of_like_length(questions, 0, size):
                contexts = [self._retrieved(questions[i]) for i in batch]
                continuations = continue_prompts(
                    self.reader, [prompts[i] for i in batch], contexts, **options
                )
                yield from zip(batch, continuations, strict=True)

    def _retrieved(self, prompt: str) -> Context:
        """What stands before a prompt and is mixed in, unread."""
        near = self.select(prompt)
        return Context(
            near.context_ids, near.context_texts, ngrams=near.ngrams(self.config)
        )

    def _check_support(self, support: Support) -> None:
        if not support.datastore:
            return
        identity = "none" if self.store is None else self.store.identity
        if support.datastore != identity:
            raise ValueError(
                f"adapted: the support belongs to datastore {support.datastore[:12]}, the "
                f"finetuner has {identity[:12]}"
            )
        is_same = support.tokenizer is self.tokenizer
        if not is_same:
            theirs = tokenizer_identity(support.tokenizer)
            is_same = theirs == tokenizer_identity(self.tokenizer)
        longest = max(map(len, support.input_ids), default=0)
        max_length = self.selector.max_length
        if not is_same or longest > max_length:
            raise ValueError(
                "adapted: the support was selected with another tokenizer, or has a passage of "
                f"more than {max_length} tokens"
            )


def _trained_parameters(model: "PreTrainedModel") -> list[nn.Parameter]:
    """The parameters with ``requires_grad``, each once. Warns if they are float16."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not named:
        raise ValueError(
            "TestTimeFinetuner: model must have a parameter with requires_grad, got none; PEFT "
            "adapters are loaded with is_trainable=True"
        )
    for name, parameter in named.items():
        if parameter.is_meta:
            raise ValueError(
                f"TestTimeFinetuner: model must have its weights, {name} is on the meta device"
            )
        if parameter.dtype == torch.float16:
            warnings.warn(
                f"TestTimeFinetuner: {name} is float16, in which the square of a small gradient is "
                "0 and Adam's step far too large: load the model in bfloat16 or float32",
                stacklevel=3,
            )
            break
    return list(named.values())
