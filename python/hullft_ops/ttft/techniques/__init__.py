"""The techniques that may precede an answer, and their options, which are those of a prompt."""

from dataclasses import fields
from typing import Any, cast

from hullft_ops.ttft.models.modes import ReadingOptions
from hullft_ops.ttft.techniques.adapter import AdapterOptions
from hullft_ops.ttft.techniques.ngrams import NgramOptions
from hullft_ops.ttft.techniques.passage_steps import PassageStepOptions
from hullft_ops.ttft.techniques.passages import PassageOptions
from hullft_ops.ttft.techniques.prompt_steps import PromptStepOptions
from hullft_ops.ttft.techniques.technique import Technique, TechniqueOptions
from hullft_ops.ttft.validation import options_class


@options_class
class TTFTConfig(
    # The techniques, in the order in which they are applied.
    AdapterOptions,
    PassageStepOptions,
    PromptStepOptions,
    PassageOptions,
    NgramOptions,
):
    """How `TestTimeFinetuner` adapts a model to a prompt.

    Raises:
        InputError: a value has the wrong type or is out of range, or an option is unknown.
    """

    techniques: tuple[Technique, ...] = ()
    """In Python, techniques of your own, which come before these."""

    def active(self) -> list[Technique]:
        """The techniques that the options turn on, in the order in which they are applied."""
        techniques = list(self.techniques)
        for options in TTFTConfig.__bases__:
            technique = cast(type[TechniqueOptions], options).technique(self)
            if technique is not None:
                techniques.append(technique)
        return techniques

    def neighbours(self) -> int:
        """How many of a prompt's nearest passages the techniques look at."""
        return max((each.neighbours for each in self.active()), default=0)

    def settings(self) -> dict[str, Any]:
        """The options that matter, which tell configurations apart."""
        values: dict[str, Any] = {}
        for technique in self.active():
            values |= technique.settings
        for field in fields(ReadingOptions):
            value = getattr(self, field.name)
            if value != field.default:
                values[field.name] = value
        return values
