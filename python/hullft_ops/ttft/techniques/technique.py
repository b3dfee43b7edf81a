"""What a technique is, and what it prepares for a prompt."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from inspect import get_annotations
from typing import Any, Protocol, TypeVar, runtime_checkable

from hullft_ops.ttft.models.modes import ReadingOptions
from hullft_ops.ttft.prefix import Mixture, Passage
from hullft_ops.ttft.reader import Reader
from hullft_ops.ttft.retrieval import Neighbours
from hullft_ops.ttft.training import Training

Kind = TypeVar("Kind")


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


class TechniqueOptions:
    """Options that turn a technique on."""

    def technique(self) -> "Technique | None":
        """The technique with these options; None if they turn it off."""
        return None


@runtime_checkable
class Technique(Protocol):
    """Something that precedes an answer: any object with these members, or a subclass of this."""

    @property
    def neighbours(self) -> int:
        """How many of the nearest passages it looks at; 0 for none."""
        return 0

    @property
    def trains(self) -> bool:
        """Whether it changes weights anew for each prompt. Without, prompts are continued
        together."""
        return True

    @property
    def settings(self) -> dict[str, Any]:
        """What a row of an evaluation states of it, by names of its own, in values of JSON."""
        is_ours = isinstance(self, TechniqueOptions)
        return stated(self) if is_ours else {type(self).__name__: True}

    def load(self, reader: Reader) -> None:
        """Called once for a finetuner. Refuses a model that it does not fit."""
        return

    def prepare(self, neighbours: Neighbours, reader: Reader) -> Prepared:
        """What it does for the prompt of ``neighbours``, with the model of ``reader``."""
        return Prepared()


def options_of(kind: type[Kind], options: Any) -> Kind:
    """The ``kind`` of options with the values that ``options`` has for its fields."""
    names = [each.name for each in fields(kind)]  # type: ignore[arg-type]
    return kind(**{name: getattr(options, name) for name in names})


def stated(options: Any) -> dict[str, Any]:
    """The values of some options but None, and but those that techniques share.

    Those of the technique itself come first: they tell configurations apart.
    """
    shared = {each.name for each in fields(ReadingOptions)}
    names = [name for kind in type(options).__mro__ for name in get_annotations(kind)]
    values = {name: getattr(options, name) for name in names if name not in shared}
    # Rows of before have Adam's own rate by the name of lr.
    return {
        "relative_lr" if name == "lr" else name: value
        for name, value in values.items()
        if value is not None
    }
