"""Optimizer steps on the prompt itself."""

from functools import partial
from typing import Annotated

from pydantic import Field

from hullft_ops.ttft.reader import Reader
from hullft_ops.ttft.retrieval import Neighbours
from hullft_ops.ttft.techniques.technique import (
    Prepared,
    Technique,
    TechniqueOptions,
    options_of,
)
from hullft_ops.ttft.training import (
    MAX_STEPS,
    MIN_TOKENS,
    Training,
    TrainingOptions,
    passes_of,
)
from hullft_ops.ttft.validation import options_class


@options_class
class PromptStepOptions(TrainingOptions, TechniqueOptions):
    """How many steps to take on the prompt."""

    train_on_prompt: Annotated[int, Field(ge=0, le=MAX_STEPS)] = 2
    """Optimizer steps on the prompt itself, after those on passages."""

    def technique(self) -> Technique | None:
        """None if no step is taken on the prompt."""
        return options_of(PromptSteps, self) if self.train_on_prompt else None


class PromptSteps(PromptStepOptions, Technique):
    """Optimizer steps on the prompt, as many of its last tokens as fit."""

    def prepare(self, neighbours: Neighbours, reader: Reader) -> Prepared:
        ids = reader.tokens(neighbours.prompt).ids
        ids = ids[-(self.max_length or reader.window) :]
        if len(ids) < MIN_TOKENS:
            return Prepared()
        passes = passes_of(ids, self.train_on_prompt, self.refresh)
        return Prepared(change_weights=partial(Training.take, passes=passes))
