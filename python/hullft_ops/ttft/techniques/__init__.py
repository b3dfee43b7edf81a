"""The techniques that may precede an answer, and their options, set for each prompt."""

from dataclasses import fields
from typing import Any

from hullft_ops.ttft.models.precision import ReadingOptions
from hullft_ops.ttft.techniques.adapter import Adapter, AdapterOptions
from hullft_ops.ttft.techniques.ngrams import NgramMixture, NgramOptions
from hullft_ops.ttft.techniques.passage_steps import PassageStepOptions, PassageSteps
from hullft_ops.ttft.techniques.passages import PassageOptions, Passages
from hullft_ops.ttft.techniques.prompt_steps import PromptStepOptions, PromptSteps
from hullft_ops.ttft.techniques.technique import Technique
from hullft_ops.ttft.validation import options_class

TECHNIQUES: tuple[type[Technique], ...] = (
    Adapter,
    PassageSteps,
    PromptSteps,
    Passages,
    NgramMixture,
)
"""The package's techniques, in the order in which they are applied."""


@options_class
class TTFTConfig(
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

    techniques: tuple[Technique | type[Technique], ...] = TECHNIQUES
    """In Python, techniques of your own beside the classes of these, in the order in which they are
    applied. Classes that are left out come last."""

    def active(self) -> list[Technique]:
        """The techniques, of which the options turn on the package's own."""
        others = [kind for kind in TECHNIQUES if kind not in self.techniques]
        return [
            each if isinstance(each, Technique) else each(self)  # type: ignore[call-arg]
            for each in (*self.techniques, *others)
            if isinstance(each, Technique) or getattr(self, each.switch, True)
        ]

    def settings(self) -> dict[str, Any]:
        """The options that matter, which tell configurations apart."""
        values: dict[str, Any] = {}
        active = self.active()
        for technique in active:
            values |= technique.settings or {type(technique).__name__: True}
        if self.techniques != TECHNIQUES and len(active) > 1:
            values["techniques"] = ",".join(type(each).__name__ for each in active)
        for field in fields(ReadingOptions):
            value = getattr(self, field.name)
            if value != field.default:
                values[field.name] = value
        return values
