"""A model that is adapted to a prompt: it scores and continues texts after what was prepared."""

from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Any

import torch

from hullft_ops.ttft.language_model import LanguageModel
from hullft_ops.ttft.models.memory import out_of_memory_explained
from hullft_ops.ttft.prefix import Passage, Prefix
from hullft_ops.ttft.question import Prompt, Question, question_of
from hullft_ops.ttft.scoring import BitsPerByte, score
from hullft_ops.ttft.search import Neighbours
from hullft_ops.ttft.training import Training
from hullft_ops.ttft.write import continue_questions

OUT_OF_MEMORY = (
    "TestTimeFinetuner: out of memory, adapting. Lower max_length or context, use "
    'dtype="bfloat16", or train less of the model: PEFT adapters, or requires_grad_(False) for '
    "some of it"
)


class Adaptation:
    """A model that is adapted to a prompt. `TestTimeFinetuner.adapted` makes one.

    Attributes:
        language_model: the model.
        question: the prompt, understood.
        neighbours: what was retrieved: positions of passages, nearest first.
        trained_on: the passes, each with its text and how many steps it served.
        losses: the mean loss of each pass, in nats.
        passes: forward-backward passes, one for each gradient.
        skipped_steps: steps that did not fit into the budget of seconds or passes.
        seconds: wall-clock seconds by stage: embed, search, select (what the techniques prepare),
            finetune (changing the weights), and prefill (reading the retrieved passages).
        has_ended: whether the model is restored.
    """

    def __init__(
        self,
        language_model: LanguageModel,
        neighbours: Neighbours,
        prefix: Prefix,
        training: Training,
        reports: Mapping[type, Any],
        seconds: dict[str, float],
    ) -> None:
        self.language_model = language_model
        self.question = neighbours.question
        self.neighbours = neighbours
        self.trained_on = training.trained_on
        self.losses = training.losses
        self.passes = len(training.losses)
        self.skipped_steps = training.skipped_steps
        self.seconds = seconds
        self.has_ended = False
        self._prefix = prefix
        self._reports = reports

    def report(self, technique: type) -> Any:
        """What a technique of this class tells of the prompt, `Support` for ``PassageSteps``; None
        if there is no such technique, or it tells nothing."""
        return self._reports.get(technique)

    def score(
        self, text: str, *, after: Prompt | Question | None = None
    ) -> BitsPerByte:
        """The bits per byte of a text after the prompt, as `hullft_ops.ttft.score_text` gives them
        of an unadapted model.

        Args:
            text: what comes after the prompt.
            after: another prompt; "" for none.

        Raises as `score_text`; ValueError as `generate`.
        """
        self._check_alive("score")
        question: Question | None = self.question
        if after is not None:
            question = self._other("score", after) if after else None
        return score(self.language_model, text, after=question, prefix=self._prefix)

    def generate(
        self,
        prompt: Prompt | Question | None = None,
        *,
        suffix: str = "",
        chat: bool = False,
        **generate_kwargs: Any,
    ) -> str:
        """What the adapted model writes at the cursor, after the retrieved passages.

        Args:
            prompt: None for the adaptation's own; or another one, as in `question_of`, for which
                neither passages nor steps change. Of one that is too long, the model reads what is
                near the cursor, as much as leaves room for the new tokens.
            suffix: the text after the cursor of another prompt.
            chat: whether another prompt is a user's message.
            generate_kwargs: for ``model.generate``; ``max_new_tokens`` defaults to 20.

        Returns:
            Only the continuation, without special tokens.

        Raises:
            TypeError, ValueError: as `question_of`; another prompt opens otherwise than the own, so
                that the passages would have to be read again; ``max_new_tokens`` leaves no room for
                it; or an argument asks for more than one continuation.
        """
        self._check_alive("generate")
        if prompt is None:
            prompt = self.question
        question = self._other("generate", prompt, suffix=suffix, chat=chat)
        [text] = continue_questions(
            self.language_model, [question], [self._prefix], **generate_kwargs
        )
        return text

    @property
    def total_steps(self) -> int:
        """Optimizer steps taken."""
        return sum(each.repeats for each in self.trained_on)

    @property
    def passages(self) -> Sequence[Passage]:
        """The retrieved passages before the prompt, nearest last."""
        return self._prefix.passages

    def prefill(self) -> None:
        """Read the passages that fit before the prompt."""
        question = self.question
        self._prefix = self._prefix.fitting(question, self.language_model.window)
        start = perf_counter()
        with out_of_memory_explained(OUT_OF_MEMORY):
            self._prefix = self.language_model.prefill(
                self._prefix, question.ids[: question.opening]
            )
        if self.language_model.model.device.type == "cuda":
            torch.cuda.synchronize(self.language_model.model.device)
        self.seconds["prefill"] = perf_counter() - start

    def _other(
        self, function: str, prompt: Prompt | Question, **options: Any
    ) -> Question:
        """Another prompt, before which the same passages stand."""
        question = question_of(self.language_model.tokenizer, prompt, **options)
        ours, theirs = (
            list(each.ids[: each.opening]) for each in (self.question, question)
        )
        if self.passages and ours != theirs:
            raise ValueError(
                f"{function}: the prompt must open as the one that the model is adapted to, behind "
                "whose opening the passages are read: pass the same chat to adapted"
            )
        return question

    def _check_alive(self, function: str) -> None:
        if self.has_ended:
            raise RuntimeError(
                f"{function}: the model is restored: call it in the with block"
            )
