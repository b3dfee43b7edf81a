"""What a technique is, and what it prepares for a prompt."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import get_annotations
from typing import Any

from hullft_ops.ttft.language_model import LanguageModel
from hullft_ops.ttft.models.precision import ReadingOptions
from hullft_ops.ttft.prefix import Mixture, Passage, Prefix
from hullft_ops.ttft.search import Neighbours
from hullft_ops.ttft.training import Training


@dataclass(frozen=True)
class Prepared:
    """What a technique does for a prompt in the with block.

    Attributes:
        change_weights: called with the model's `Training` as the block begins. What it returns is
            the technique's report on the prompt; see `Adaptation.report`.
        passages: stand before the prompt, nearest last.
        mixture: changes the model's predictions.
    """

    change_weights: Callable[[Training], Any] | None = None
    passages: Sequence[Passage] = ()
    mixture: Mixture | None = None


def prefix_of(prepared: Sequence[Prepared]) -> Prefix:
    """The passages and mixtures of all techniques, still unread."""
    return Prefix(
        passages=[passage for each in prepared for passage in each.passages],
        mixtures=[each.mixture for each in prepared if each.mixture is not None],
    )


class Technique:
    """Something that precedes an answer: an object of a subclass.

    Attributes:
        n_neighbours: how many of the nearest passages it looks at; 0 for none.
        switch: of the package's own, the option that turns it on.
        trains: whether it changes weights anew for each prompt. Without, prompts are continued
            together.
        settings: what a row of an evaluation states of it, by names of its own, in values of JSON;
            empty for its name alone.
    """

    switch: str = ""
    n_neighbours: int = 0
    trains: bool = True
    settings: Mapping[str, Any] = {}

    def load(self, language_model: LanguageModel) -> None:
        """Called once for a finetuner. Refuses a model that it does not fit."""

    def prepare(
        self, neighbours: Neighbours, language_model: LanguageModel
    ) -> Prepared:
        """What it does for the question of ``neighbours``, with a model."""
        return Prepared()


def stated(options: Any, kind: type) -> dict[str, Any]:
    """The options of a kind that are set, without `ReadingOptions`, which techniques share. A
    function or class of one's own has its name.

    The kind's own options come before inherited ones: they tell configurations apart.
    """
    kinds = [each for each in kind.__mro__ if each is not ReadingOptions]
    names = [name for each in kinds for name in get_annotations(each)]
    values = {name: getattr(options, name) for name in names}
    return {
        name: getattr(value, "__name__", str(value)) if callable(value) else value
        for name, value in values.items()
        if value is not None
    }
