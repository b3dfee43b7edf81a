"""Optimizer steps on the prompt itself."""

from typing import Annotated

from pydantic import Field

from hullft_ops.ttft.language_model import LanguageModel
from hullft_ops.ttft.search import Neighbours
from hullft_ops.ttft.techniques.technique import Prepared, Technique, stated
from hullft_ops.ttft.training import (
    MAX_STEPS,
    MIN_TOKENS,
    TrainingOptions,
    passes_of,
)
from hullft_ops.ttft.validation import options_class


@options_class
class PromptStepOptions(TrainingOptions):
    """How many steps to take on the prompt."""

    train_on_prompt: Annotated[int, Field(ge=0, le=MAX_STEPS)] = 2
    """Optimizer steps on the prompt itself, after those on passages."""


class PromptSteps(Technique):
    """Optimizer steps on the prompt, as many of its last tokens as fit."""

    switch = "train_on_prompt"

    def __init__(self, options: PromptStepOptions) -> None:
        self.settings = stated(options, PromptStepOptions)
        self._options = options

    def prepare(
        self, neighbours: Neighbours, language_model: LanguageModel
    ) -> Prepared:
        """Its report is the number of steps that were taken."""
        options = self._options
        ids = language_model.tokens(neighbours.question.text).ids
        ids = ids[-(options.max_length or language_model.window) :]
        if len(ids) < MIN_TOKENS:
            return Prepared()
        passes = passes_of(ids, options.train_on_prompt, options.refresh)
        return Prepared(
            change_weights=lambda training: sum(
                each.repeats for each in training.take(passes)
            )
        )
