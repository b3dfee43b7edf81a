"""N-grams of the neighbours, mixed into the model's predictions."""

from typing import Annotated

from pydantic import Field

from hullft_ops.ttft.ngrams import WEIGHTS, Ngrams
from hullft_ops.ttft.reader import Reader
from hullft_ops.ttft.retrieval import (
    Neighbours,
    PoolOptions,
    text_of,
    whole_runs,
)
from hullft_ops.ttft.techniques.technique import Prepared, Technique, stated
from hullft_ops.ttft.validation import options_class


@options_class
class NgramOptions(PoolOptions):
    """How to mix n-grams in."""

    ngrams: Annotated[float, Field(ge=0, le=1)] = 1.0
    """How strongly to mix n-grams of the pool into the model's predictions, from 0 for no n-grams
    to 1: a factor of the weights of `hullft_ops.ttft.Ngrams`. Half of it while the model writes."""


class NgramMixture(Technique):
    """N-grams of the pool change the predictions."""

    trains = False

    def __init__(self, options: NgramOptions) -> None:
        self.neighbours = options.pool_size
        self.settings = stated(options, NgramOptions)
        self._weights = [options.ngrams * weight for weight in WEIGHTS]

    def prepare(self, neighbours: Neighbours, reader: Reader) -> Prepared:
        """The n-grams of the pool's passages, each with the passage that follows it."""
        store = neighbours.store
        runs = whole_runs(store, neighbours.positions[: self.neighbours])
        texts = [reader.passage_ids(text_of(store, run)) for run in runs]
        return Prepared(mixture=Ngrams(texts, self._weights))
