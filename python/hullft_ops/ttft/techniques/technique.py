"""What a technique is, and what it prepares for a prompt."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import get_annotations
from typing import Any

from hullft_ops.ttft.models.precision import ReadingOptions
from hullft_ops.ttft.reader import Mixture, Passage, Reader
from hullft_ops.ttft.retrieval import Neighbours
from hullft_ops.ttft.training import Training


@dataclass(frozen=True)
class Support:
    """The passages that a model is trained on for a prompt, largest weight first.

    Attributes:
        indices: positions in the datastore.
        weights: the convex weights; "knn" gives equal ones.
        counts: optimizer steps on each passage. Their sum is less than was asked for if the method
            is "knn" and the pool is smaller, or a passage has no next token to train on. "hullft"
            may leave a passage without a step, even a heavy one, to keep the mean over the steps
            near the prompt.
        residual: distance from the prompt's embedding to the weighted mean; its norm without
            passages.
        gap: Frank-Wolfe gap over the pool.
        input_ids: the tokens of each passage, cut to ``max_length``.
        seconds: wall-clock time to select them.
    """

    indices: list[int]
    weights: list[float]
    counts: list[int]
    residual: float
    gap: float
    input_ids: list[list[int]] = field(default_factory=list)
    seconds: float = field(default=0.0, compare=False)


@dataclass(frozen=True)
class Prepared:
    """What a technique does for a prompt in the with block.

    Attributes:
        change_weights: called with the model's `Training` as the block begins.
        passages: stand before the prompt, nearest last.
        mixture: changes the model's predictions.
        support: the passages that ``change_weights`` trains on.
    """

    change_weights: Callable[[Training], None] | None = None
    passages: Sequence[Passage] = ()
    mixture: Mixture | None = None
    support: Support | None = None


class Technique:
    """Something that precedes an answer: an object of a subclass.

    Attributes:
        neighbours: how many of the nearest passages it looks at; 0 for none.
        trains: whether it changes weights anew for each prompt. Without, prompts are continued
            together.
        settings: what a row of an evaluation states of it, by names of its own, in values of JSON;
            empty for its name alone.
    """

    neighbours: int = 0
    trains: bool = True
    settings: Mapping[str, Any] = {}

    def load(self, reader: Reader) -> None:
        """Called once for a finetuner. Refuses a model that it does not fit."""

    def prepare(self, neighbours: Neighbours, reader: Reader) -> Prepared:
        """What it does for the prompt of ``neighbours``, with the model of ``reader``."""
        return Prepared()


def stated(options: Any, kind: type) -> dict[str, Any]:
    """The values but None of a kind of options, but for those of `ReadingOptions`, which techniques
    share.

    Those of the kind itself come first: they tell configurations apart.
    """
    kinds = [each for each in kind.__mro__ if each is not ReadingOptions]
    names = [name for each in kinds for name in get_annotations(each)]
    values = {name: getattr(options, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}
