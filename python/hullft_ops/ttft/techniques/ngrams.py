"""N-grams of the neighbours, mixed into the model's predictions."""

from typing import Annotated, Any

from pydantic import Field

from hullft_ops.ttft.ngrams import WEIGHTS, Ngrams
from hullft_ops.ttft.reader import Reader
from hullft_ops.ttft.retrieval import (
    Neighbours,
    PoolOptions,
    text_of,
    whole_runs,
)
from hullft_ops.ttft.techniques.technique import (
    Prepared,
    Technique,
    TechniqueOptions,
    options_of,
    stated,
)
from hullft_ops.ttft.validation import options_class

# At 1 nothing would be left of the model.
_Weight = Annotated[float, Field(ge=0, lt=1)]


@options_class
class NgramOptions(PoolOptions, TechniqueOptions):
    """How to mix n-grams in."""

    ngrams: Annotated[float, Field(ge=0, le=1)] = 1.0
    """How strongly to mix n-grams of the pool into the model's predictions: a factor of
    ``ngram_weights``, from 0 for no n-grams to 1. Half of it while the model writes."""

    ngram_weights: Annotated[tuple[_Weight, ...], Field(min_length=1)] = WEIGHTS
    """Weights of what follows n-grams of 1, 2, 4, ... tokens; see `hullft_ops.ttft.Ngrams`."""

    def technique(self) -> Technique | None:
        """None if no n-grams are mixed in."""
        return options_of(NgramMixture, self) if self.ngrams else None


class NgramMixture(NgramOptions, Technique):
    """N-grams of the pool change the predictions."""

    @property
    def neighbours(self) -> int:
        return self.pool_size

    trains = False

    @property
    def settings(self) -> dict[str, Any]:
        values = stated(self)
        if self.ngram_weights == WEIGHTS:
            del values["ngram_weights"]
        return values

    def prepare(self, neighbours: Neighbours, reader: Reader) -> Prepared:
        """The n-grams of the pool's passages, each with the passage that follows it."""
        store = neighbours.store
        runs = whole_runs(store, neighbours.positions[: self.pool_size])
        texts = [reader.passage_ids(text_of(store, run)) for run in runs]
        weights = [self.ngrams * weight for weight in self.ngram_weights]
        return Prepared(mixture=Ngrams(texts, weights))
