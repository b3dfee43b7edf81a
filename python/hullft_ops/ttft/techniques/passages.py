"""Retrieved passages that stand before the prompt, and are read once."""

from pydantic import NonNegativeInt

from hullft_ops.ttft.language_model import LanguageModel
from hullft_ops.ttft.prefix import Passage
from hullft_ops.ttft.search import (
    Neighbours,
    SearchOptions,
    retrieved_runs,
    with_separator,
)
from hullft_ops.ttft.techniques.technique import Prepared, Technique, stated
from hullft_ops.ttft.validation import options_class


@options_class
class PassageOptions(SearchOptions):
    """Which passages stand before the prompt."""

    context: NonNegativeInt = 5
    """How many of the nearest passages stand before the prompt, nearest last."""

    context_following: NonNegativeInt = 1
    """Following passages appended to each of these, from the same document."""


class Passages(Technique):
    """The nearest passages stand before the prompt."""

    switch = "context"
    trains = False

    def __init__(self, options: PassageOptions) -> None:
        self.n_neighbours = options.context
        self.settings = stated(options, PassageOptions)
        self._following = options.context_following

    def prepare(
        self, neighbours: Neighbours, language_model: LanguageModel
    ) -> Prepared:
        """The nearest passage stands last."""
        store = neighbours.store
        nearest = neighbours.positions[: self.n_neighbours]
        passages = []
        for run in retrieved_runs(store, nearest, self._following):
            text = with_separator(store, run)
            passages.append(Passage(text, language_model.passage_ids(text), run))
        return Prepared(passages=passages[::-1])
