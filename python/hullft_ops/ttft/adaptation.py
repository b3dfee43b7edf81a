"""A model that is adapted to a prompt: it scores and continues texts behind what was prepared."""

from collections import Counter
from collections.abc import Sequence
from time import perf_counter
from typing import Any

import torch

from hullft_ops.ttft.chat import Prompt, prompt_question
from hullft_ops.ttft.generation import continue_prompts
from hullft_ops.ttft.models.memory import out_of_memory_explained
from hullft_ops.ttft.reader import Passage, Prefix, Reader
from hullft_ops.ttft.retrieval import Neighbours
from hullft_ops.ttft.scoring import BitsPerByte, score
from hullft_ops.ttft.techniques.technique import Prepared, Support
from hullft_ops.ttft.training import Training

OUT_OF_MEMORY = (
    "TestTimeFinetuner: out of memory, adapting. Lower max_length or context, use "
    'dtype="bfloat16", or train less of the model: PEFT adapters, or requires_grad_(False) for '
    "some of it"
)


class Adaptation:
    """A model that is adapted to a prompt. `TestTimeFinetuner.adapted` makes one.

    Attributes:
        reader: the model.
        neighbours: what was retrieved: positions of passages, nearest first.
        support: the passages that the model was trained on; without any if it was on none.
        taken: the passes, each with its text and how many steps it served.
        losses: the mean loss of each pass, in nats.
        passes: forward-backward passes, one for each gradient.
        skipped_steps: steps that did not fit into the budget of seconds or passes.
        seconds: wall-clock seconds by stage: embed, search, select, finetune (from the support to
            the trained model), and prefill (reading the retrieved passages).
        has_ended: whether the model is restored.
    """

    def __init__(
        self,
        reader: Reader,
        neighbours: Neighbours,
        prepared: Sequence[Prepared],
        training: Training,
        seconds: dict[str, float],
    ) -> None:
        self.reader = reader
        self.neighbours = neighbours
        self.support = support_of(prepared)
        self.taken = training.taken
        self.losses = training.losses
        self.passes = len(training.losses)
        self.skipped_steps = training.skipped_steps
        self.seconds = seconds
        self.has_ended = False
        self._prefix = prefix_of(prepared)

    def score(self, text: str, *, after: str = "") -> BitsPerByte:
        """`hullft_ops.ttft.score_text` of the adapted model, behind what was prepared.

        ``after`` is a prompt that comes before the text.
        """
        self._check_alive("score")
        return score(self.reader, text, after=after, prefix=self._prefix)

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
        [text] = continue_prompts(
            self.reader, [prompt], [self._prefix], chat=chat, **generate_kwargs
        )
        return text

    @property
    def steps(self) -> list[int]:
        """The optimizer steps taken on each passage of the support."""
        taken: Counter[int | None] = Counter()
        for each in self.taken:
            taken[each.position] += each.repeats
        return [taken[index] for index in self.support.indices]

    @property
    def is_trained_on_prompt(self) -> bool:
        return any(each.position is None for each in self.taken)

    @property
    def total_steps(self) -> int:
        """Optimizer steps taken."""
        return sum(each.repeats for each in self.taken)

    @property
    def passages(self) -> Sequence[Passage]:
        """The retrieved passages before the prompt, nearest last."""
        return self._prefix.passages

    def prefill(self, prompt: Prompt, *, chat: bool = False) -> None:
        """Read the passages that fit before a prompt."""
        has_passages = bool(self.passages)
        question = prompt_question(
            self.reader, prompt, chat=chat, has_passages=has_passages
        )
        self._prefix = self._prefix.fitting(question, self.reader.window)
        opening = question.ids[: question.opening]
        start = perf_counter()
        with out_of_memory_explained(OUT_OF_MEMORY):
            self._prefix = self.reader.prefill(self._prefix, opening)
        if self.reader.model.device.type == "cuda":
            torch.cuda.synchronize(self.reader.model.device)
        self.seconds["prefill"] = perf_counter() - start

    def _check_alive(self, function: str) -> None:
        if self.has_ended:
            raise RuntimeError(
                f"{function}: the model is restored: call it in the with block"
            )


def prefix_of(prepared: Sequence[Prepared]) -> Prefix:
    """The passages and mixtures of all techniques, still unread."""
    return Prefix(
        passages=[passage for each in prepared for passage in each.passages],
        mixtures=[each.mixture for each in prepared if each.mixture is not None],
    )


def support_of(prepared: Sequence[Prepared]) -> Support:
    """The passages that a technique trains on; without any if none does."""
    nothing = Support([], [], [], residual=1.0, gap=0.0)
    return next((each.support for each in prepared if each.support), nothing)
