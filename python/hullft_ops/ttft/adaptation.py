"""An adapted model: its support, losses and times, and what it can do until it is restored."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from hullft_ops.ttft.chat import Prompt, prompt_tokens
from hullft_ops.ttft.clock import timed
from hullft_ops.ttft.generation import continue_prompt
from hullft_ops.ttft.models.memory import out_of_memory_explained
from hullft_ops.ttft.prefix import Passage, Prefix
from hullft_ops.ttft.reader import Reader
from hullft_ops.ttft.scoring import BitsPerByte, score
from hullft_ops.ttft.techniques.technique import Prepared, Support
from hullft_ops.ttft.training import Pass, Training

OUT_OF_MEMORY = (
    "TestTimeFinetuner: out of memory, adapting. Lower max_length or context, use "
    'dtype="bfloat16", or train less of the model: PEFT adapters, or requires_grad_(False) for '
    "some of it"
)


class Answering:
    """A model behind a prefix: it scores texts, and continues prompts.

    Attributes:
        has_ended: whether the model is restored.
    """

    def __init__(self, reader: Reader, prefix: Prefix) -> None:
        self.has_ended = False
        self._reader = reader
        self._prefix = prefix

    @property
    def is_trained_on_prompt(self) -> bool:
        """Whether a step was taken on the prompt itself."""
        return False

    def score(self, text: str, *, after: str = "") -> BitsPerByte:
        """`hullft_ops.ttft.score_text` of the adapted model, behind what was prepared.

        ``after`` is a prompt that comes before the text.
        """
        self._check_alive("score")
        return score(self._reader, text, after=after, prefix=self._prefix)

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
            self._reader, prompt, prefix=self._prefix, chat=chat, **generate_kwargs
        )

    def beginning(self, text: str, count: int) -> str:
        """The first ``count`` tokens of a text, without special ones."""
        ids = self._reader.passage_ids(text)[:count]
        return str(self._reader.tokenizer.decode(ids))

    def _check_alive(self, function: str) -> None:
        if self.has_ended:
            raise RuntimeError(
                f"{function}: the model is restored: call it in the with block"
            )


class Adaptation(Answering):
    """A model that is adapted to a prompt. `TestTimeFinetuner.adapted` makes one.

    Attributes:
        prepared: what each technique has prepared.
        support: the passages that the model was trained on; without any if it was on none.
        seconds: wall-clock seconds by stage: embed, search, select, finetune (from the support to
            the trained model), and prefill (reading the retrieved passages).
    """

    def __init__(
        self,
        reader: Reader,
        prepared: Sequence[Prepared],
        training: Training,
        seconds: dict[str, float],
    ) -> None:
        super().__init__(reader, prefix_of(prepared))
        self.prepared = prepared
        self.support = support_of(prepared)
        self.seconds = seconds
        self._training = training

    @property
    def losses(self) -> list[float]:
        """The mean loss of each pass, in nats."""
        return self._training.losses

    @property
    def taken(self) -> Sequence[Pass]:
        """The passes, each with its text and how many steps it served."""
        return self._training.taken

    @property
    def passes(self) -> int:
        """Forward-backward passes, one for each gradient."""
        return len(self.losses)

    @property
    def steps(self) -> list[int]:
        """The optimizer steps taken on each passage of the support."""
        taken: Counter[int | None] = Counter()
        for each in self._training.taken:
            taken[each.position] += each.repeats
        return [taken[index] for index in self.support.indices]

    @property
    def is_trained_on_prompt(self) -> bool:
        return any(each.position is None for each in self._training.taken)

    @property
    def total_steps(self) -> int:
        """Optimizer steps taken."""
        return sum(each.repeats for each in self._training.taken)

    @property
    def skipped_steps(self) -> int:
        """Steps that did not fit into the budget of seconds or passes."""
        return self._training.skipped_steps

    @property
    def passages(self) -> Sequence[Passage]:
        """The retrieved passages before the prompt, nearest last."""
        return self._prefix.passages

    def prefill(self, prompt: Prompt, *, chat: bool = False) -> None:
        """Read the passages that fit before a prompt."""
        has_passages = bool(self.passages)
        tokens = prompt_tokens(
            self._reader, prompt, chat=chat, has_passages=has_passages
        )
        self._prefix = self._prefix.fitting(tokens, self._reader.window)
        opening = tokens.ids[: tokens.opening]
        device = self._reader.model.device
        with (
            out_of_memory_explained(OUT_OF_MEMORY),
            timed(self.seconds, "prefill", device),
        ):
            self._prefix = self._reader.prefill(self._prefix, opening)


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
