"""Adapting a language model to a prompt for the length of a with block."""

import warnings
from collections.abc import Iterator
from copy import copy
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hullft_ops.ttft.adaptation import Adaptation
from hullft_ops.ttft.adapter import read_adapter
from hullft_ops.ttft.config import TTFTConfig
from hullft_ops.ttft.contexts import signal_safe
from hullft_ops.ttft.embedding import Embedder
from hullft_ops.ttft.models.checks import full_window, text_window
from hullft_ops.ttft.models.lora import add_lora
from hullft_ops.ttft.reader import Reader, tokenizer_identity
from hullft_ops.ttft.restore import exclusive, restored
from hullft_ops.ttft.steps import Deadline
from hullft_ops.ttft.store.base import Store, check_embedder, check_store
from hullft_ops.ttft.support import Support, SupportSelector
from hullft_ops.ttft.training import SupportTrainer

# Parameters that cannot take small steps, and why.
_HALF = {
    torch.float16: "float16, in which the square of a small gradient is 0 and Adam's step far too "
    "large",
    torch.bfloat16: "bfloat16, in which most steps are rounded away",
}


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
        store: the passages to retrieve.
        embedder: the embedder that the store was made with.
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
        store: Store,
        embedder: Embedder,
        config: TTFTConfig | None = None,
        **options: Any,
    ) -> None:
        check_store("TestTimeFinetuner", store)
        check_embedder("TestTimeFinetuner", embedder, store)
        self.model = model
        self.tokenizer = tokenizer
        self.store = store
        self._embedder = embedder
        self._trained = _trained_parameters(model)
        # The memory of the parameters' copies, which serves every prompt.
        self._copies: list[Tensor] = []
        # By its folder, the weights that an adapter changes, and PEFT's layers for them.
        self._adapters: dict[str | None, list[tuple[nn.Parameter, Any]]] = {None: []}
        config = replace(config or TTFTConfig(), **options)
        window = full_window(model, tokenizer, config.max_length)
        self.reader = Reader(model, tokenizer, window)
        self._set(config)

    def with_config(self, config: TTFTConfig) -> "TestTimeFinetuner":
        """A finetuner with other options, for which nothing is checked or read again."""
        other = copy(self)
        other._set(config)
        return other

    def _set(self, config: TTFTConfig) -> None:
        max_length = text_window(self.model, self.tokenizer, config.max_length)
        window = full_window(self.model, self.tokenizer, max_length)
        if window != self.reader.window:
            self.reader = Reader(self.model, self.tokenizer, window)
        self.config = config
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

        On exit, even after an exception or one Ctrl-C, the trained parameters, buffers, gradients,
        ``requires_grad`` flags and training modes have the same bits as before, in the same
        storage. Other threads and asyncio tasks may not adapt or read the model meanwhile.

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
        trained = self._trained if any(support.counts) or adapter else []
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

    def generate(
        self, prompt: str, *, seconds: float | None = None, **generate_kwargs: Any
    ) -> str:
        """Adapt to ``prompt``, continue it, restore the model.

        Arguments and errors are those of `adapted` and `Adaptation.generate`.
        """
        with self.adapted(prompt, seconds=seconds) as adaptation:
            return adaptation.generate(prompt, **generate_kwargs)

    def _check_support(self, support: Support) -> None:
        if not support.datastore:
            return
        if support.datastore != self.store.identity:
            raise ValueError(
                f"adapted: the support belongs to datastore {support.datastore[:12]}, the "
                f"finetuner has {self.store.identity[:12]}"
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
    """The parameters with ``requires_grad``, each once. Warns if they have 16 bits."""
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
        if parameter.is_inference():
            raise ValueError(
                "TestTimeFinetuner: model must be made outside of torch.inference_mode, which lets "
                f"nobody train {name}"
            )
        if parameter.dtype in _HALF:
            warnings.warn(
                f"TestTimeFinetuner: {name} is {_HALF[parameter.dtype]}: load the model in float32",
                stacklevel=3,
            )
            break
    return list(named.values())
