"""An adapted model: its support, losses and times, and what it can do until it is restored."""

from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from torch import Tensor

from hullft_ops.ttft.context import SEPARATOR, ReadContext
from hullft_ops.ttft.generation import chat_message, continue_prompt
from hullft_ops.ttft.saving import SavedAdapter, save_adapter
from hullft_ops.ttft.scoring import BitsPerByte, score_text
from hullft_ops.ttft.steps import plan, steps_on_each
from hullft_ops.ttft.support import Support

if TYPE_CHECKING:
    from hullft_ops.ttft.finetuner import TestTimeFinetuner


@dataclass(eq=False, repr=False)
class Adaptation:
    """A model that is adapted to a prompt. `TestTimeFinetuner.adapted` makes one.

    Attributes:
        support: the passages to train on, and those before the prompt.
        losses: the mean loss of each pass, in nats.
        seconds: wall-clock seconds by stage: embed, search, select, tokenize, forward, backward,
            step, prefill (reading the retrieved passages), and finetune: all from the support to
            the trained model.
        has_ended: whether the model is restored.
    """

    support: Support
    _finetuner: "TestTimeFinetuner"
    _original: list[Tensor]
    seconds: dict[str, float]
    losses: list[float] = field(default_factory=list)
    has_ended: bool = False
    _context: ReadContext = field(init=False)

    @property
    def steps(self) -> list[int]:
        """The optimizer steps taken on each passage of the support."""
        sweeps = plan(self.support.counts, self._finetuner.config)
        return steps_on_each(sweeps[: self.passes], len(self.support.counts))

    @property
    def passes(self) -> int:
        """Forward-backward passes, one for each gradient."""
        return len(self.losses)

    @property
    def skipped_steps(self) -> int:
        """Steps that did not fit into the budget of seconds or passes."""
        return sum(self.support.counts) - sum(self.steps)

    def train(self, passes: int | None = None) -> None:
        """Go on training, until the passes are so many; None for all that the steps need.

        Raises:
            RuntimeError: the with block has ended.
            NonFiniteLossError, torch.OutOfMemoryError: as `TestTimeFinetuner.adapted`.
        """
        self._check_alive("train")
        before = self.passes
        self._finetuner._train(self, passes, perf_counter())
        if self.passes > before:
            self.read(len(self._context.passages))

    def read(self, context: int | None = None) -> None:
        """Put only the ``context`` nearest of the retrieved passages before texts; None for all."""
        self._check_alive("read")
        passages = self.support.context_ids
        if context is not None:
            passages = passages[max(0, len(passages) - context) :]
        self._context, self.seconds["prefill"] = self._finetuner._read(passages)

    def score(self, text: str, *, after: str = "") -> BitsPerByte:
        """`hullft_ops.ttft.score_text` of the adapted model, behind the retrieved passages.

        ``after`` is a prompt that comes before the text.
        """
        self._check_alive("score")
        return score_text(
            self._finetuner.model,
            self._finetuner.tokenizer,
            text,
            after=after,
            max_length=self._finetuner.window,
            read_context=self._context,
        )

    def generate(
        self, prompt: str, *, chat: bool = False, **generate_kwargs: Any
    ) -> str:
        """What the adapted model writes after ``prompt``, behind the retrieved passages.

        Args:
            prompt: a text. Of one that is too long, the model reads the last tokens, as many as
                leave room for the new ones.
            chat: continue it as a message in the tokenizer's chat template, in which the retrieved
                passages stand before it.
            generate_kwargs: for ``model.generate``; ``max_new_tokens`` defaults to 20.

        Returns:
            Only the continuation, without special tokens.

        Raises:
            TypeError, ValueError: the prompt is not a str or has no token, ``max_new_tokens``
                leaves no room for it, an argument asks for more than one continuation, or there is
                no chat template.
        """
        self._check_alive("generate")
        passages = self._context.passages
        if chat:
            texts = self._finetuner.store.texts
            before = [texts[index] for index in self.support.context_indices]
            message = SEPARATOR.join([*before, prompt])
            prompt, passages = chat_message(self._finetuner.tokenizer, message), []
        return continue_prompt(
            self._finetuner.model,
            self._finetuner.tokenizer,
            prompt,
            self._finetuner.window,
            passages,
            **generate_kwargs,
        )

    def save_adapter(
        self,
        path: str | Path,
        *,
        rank: int | None = None,
        base_model: str | None = None,
        overwrite: bool = False,
    ) -> SavedAdapter:
        """Write the adaptation as a folder that ``PeftModel.from_pretrained`` loads.

        PEFT adapters that were trained are written as they are. After full finetuning, the folder
        gets a LoRA: for each linear layer the one of rank ``rank`` that comes closest to the change
        of its weight, by singular value decomposition. Retrieved passages are not part of it.

        Args:
            path: the folder, which appears whole.
            rank: rank of the LoRA after full finetuning, at most the shorter side of the largest
                layer; None for trained adapters.
            base_model: the base model's name for the configuration, as vLLM serves it; None for the
                name that the model was loaded by.
            overwrite: replace a folder that an earlier call wrote.

        Raises:
            RuntimeError: the with block has ended, or nothing was trained.
            TypeError, ValueError: rank does not fit what was trained, there is not one active
                adapter, or no parameter fits into a LoRA.
            FileExistsError: the folder exists, and may not be overwritten.
        """
        self._check_alive("save_adapter")
        if not self._original:
            raise RuntimeError("save_adapter: nothing was trained, n_select is 0")
        return save_adapter(
            self._finetuner.model,
            self._finetuner._trained,
            self._original,
            path,
            rank=rank,
            base_model=base_model,
            overwrite=overwrite,
        )

    def _check_alive(self, function: str) -> None:
        if self.has_ended:
            raise RuntimeError(
                f"{function}: the model is restored: call it in the with block"
            )
