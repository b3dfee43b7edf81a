"""An adapted model: its support, losses and times, and what it can do until it is restored."""

from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

from torch import Tensor

from hullft_ops.ttft.generation import Prompt, continue_prompt
from hullft_ops.ttft.models.lora import SavedAdapter, save_adapter
from hullft_ops.ttft.models.memory import out_of_memory_explained
from hullft_ops.ttft.reader import Context, Reader
from hullft_ops.ttft.scoring import BitsPerByte, score
from hullft_ops.ttft.steps import Deadline, StageClock, schedule
from hullft_ops.ttft.support import Support
from hullft_ops.ttft.training import SupportTrainer

_OUT_OF_MEMORY = (
    "TestTimeFinetuner: out of memory, adapting. Lower max_length, "
    'context or n_select, use dtype="bfloat16", or train less of the model: PEFT adapters, or '
    "requires_grad_(False) for some of it"
)


class Adaptation:
    """A model that is adapted to a prompt. `TestTimeFinetuner.adapted` makes one.

    Attributes:
        support: the passages to train on, and those before the prompt.
        schedule: the passes that all steps need.
        losses: the mean loss of each pass so far, in nats.
        seconds: wall-clock seconds by stage: embed, search, select, tokenize, forward, backward,
            step, prefill (reading the retrieved passages), and finetune: all from the support to
            the trained model, which contains tokenize, forward, backward and step.
        has_ended: whether the model is restored.
    """

    def __init__(
        self,
        reader: Reader,
        trainer: SupportTrainer,
        support: Support,
        original: list[Tensor],
    ) -> None:
        self.support = support
        self.schedule = schedule(support.counts, trainer.config, support.prompt_count)
        self.losses: list[float] = []
        tokenize = support.seconds.get("tokenize", 0.0)
        self.seconds = support.seconds | {"finetune": tokenize}
        self.has_ended = False
        self._reader = reader
        self._trainer = trainer
        self._original = original
        self._context = Context()
        self.mix(trainer.config.ngrams)

    @property
    def steps(self) -> list[int]:
        """The optimizer steps taken on each passage of the support."""
        steps = [0] * len(self.support.counts)
        for taken in self.schedule[: self.passes]:
            if taken.passage < len(steps):
                steps[taken.passage] += taken.repeats
        return steps

    @property
    def passes(self) -> int:
        """Forward-backward passes so far, one for each gradient."""
        return len(self.losses)

    @property
    def skipped_steps(self) -> int:
        """Steps that did not fit into the budget of seconds or passes."""
        return sum(skipped.repeats for skipped in self.schedule[self.passes :])

    def train(
        self, passes: int | None = None, deadline: Deadline | None = None
    ) -> None:
        """Continue until ``passes`` passes in total; None for all that the steps need.

        Args:
            passes: how many; fewer than there are already change nothing.
            deadline: ends the training before a pass that it expects to end late.

        Raises:
            RuntimeError: the with block has ended.
            NonFiniteLossError, torch.OutOfMemoryError: as `TestTimeFinetuner.adapted`.
        """
        self._check_alive("train")
        start = perf_counter()
        clock = StageClock(self._reader.model.device)
        with out_of_memory_explained(_OUT_OF_MEMORY):
            losses = self._trainer.train(
                self.support, self.schedule[self.passes : passes], clock, deadline
            )
        self.losses += losses
        self._add_seconds(clock.seconds() | {"finetune": perf_counter() - start})
        if losses and self._context.passages:
            self.read(len(self._context.passages))

    def read(self, context: int | None = None) -> None:
        """Put only the ``context`` nearest of the retrieved passages before texts; None for all."""
        self._check_alive("read")
        passages = self.support.context_ids
        first = 0 if context is None else max(0, len(passages) - context)
        texts = self.support.context_texts[first:]
        clock = StageClock(self._reader.model.device)
        with out_of_memory_explained(_OUT_OF_MEMORY), clock.of("prefill"):
            read = self._reader.read(passages[first:], texts)
        self._context = replace(read, ngrams=self._context.ngrams)
        self.seconds |= clock.seconds()

    def mix(self, ngrams: float) -> None:
        """Mix n-grams of the neighbours in from now on, with this factor; see `TTFTConfig`."""
        self._check_alive("mix")
        config = replace(self._trainer.config, ngrams=ngrams)
        self._context = replace(self._context, ngrams=self.support.ngrams(config))

    def score(self, text: str, *, after: str = "") -> BitsPerByte:
        """`hullft_ops.ttft.score_text` of the adapted model, behind the retrieved passages and with
        n-grams of the neighbours.

        ``after`` is a prompt that comes before the text.
        """
        self._check_alive("score")
        return score(self._reader, text, after=after, context=self._context)

    def generate(
        self, prompt: Prompt, *, chat: bool = False, **generate_kwargs: Any
    ) -> str:
        """What the adapted model writes after ``prompt``, behind the retrieved passages.

        Args:
            prompt: a text, or a conversation: a list of messages, each with a "role" and a
                "content". Of one that is too long, the model reads the last tokens, as many as
                leave room for the new ones.
            chat: continue a text as a user's message. A conversation stands in the tokenizer's chat
                template, and the retrieved passages stand before its last message of the user.
            generate_kwargs: for ``model.generate``; ``max_new_tokens`` defaults to 20.

        Returns:
            Only the continuation, without special tokens.

        Raises:
            TypeError, ValueError: the prompt is neither, or has no token, ``max_new_tokens`` leaves
                no room for it, an argument asks for more than one continuation, or there is no chat
                template.
        """
        self._check_alive("generate")
        return continue_prompt(
            self._reader, prompt, context=self._context, chat=chat, **generate_kwargs
        )

    def save_adapter(
        self,
        path: str | Path,
        *,
        rank: int | None = None,
    ) -> SavedAdapter:
        """Write the adaptation as a folder that ``PeftModel.from_pretrained`` loads.

        PEFT adapters that were trained are written as they are. After full finetuning, the folder
        gets a LoRA: for each linear layer the one of rank ``rank`` that comes closest to the change
        of its weight, by singular value decomposition. Retrieved passages are not part of it.

        Args:
            path: the folder, which appears whole.
            rank: rank of the LoRA after full finetuning, at most the shorter side of the largest
                layer; None for trained adapters.

        Raises:
            RuntimeError: the with block has ended, or nothing was trained.
            TypeError, ValueError: rank does not fit what was trained, there is not one active
                adapter, or no parameter fits into a LoRA.
            FileExistsError: the folder exists, and is not empty.
        """
        self._check_alive("save_adapter")
        if not self._original:
            raise RuntimeError(
                "save_adapter: nothing was trained: n_select and train_on_prompt are 0, or the "
                "texts are too short"
            )
        return save_adapter(
            self._reader.model,
            self._trainer.trained,
            self._original,
            path,
            rank=rank,
        )

    def _add_seconds(self, seconds: dict[str, float]) -> None:
        for stage, spent in seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + spent

    def _check_alive(self, function: str) -> None:
        if self.has_ended:
            raise RuntimeError(
                f"{function}: the model is restored: call it in the with block"
            )
