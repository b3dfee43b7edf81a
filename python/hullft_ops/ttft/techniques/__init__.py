"""The techniques that may precede an answer, and their options, which are those of a prompt."""

from collections.abc import Callable
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

    techniques: tuple[Technique, ...] = ()
    """In Python, techniques of your own, which come before these."""

    def active(self) -> list[Technique]:
        """The techniques that the options turn on, in the order in which they are applied."""
        switches: dict[Callable[[Any], Technique], bool] = {
            Adapter: self.adapter is not None,
            PassageSteps: self.n_select > 0,
            PromptSteps: self.train_on_prompt > 0,
            Passages: self.context > 0,
            NgramMixture: self.ngrams > 0,
        }
        ours = [technique(self) for technique, is_on in switches.items() if is_on]
        return [*self.techniques, *ours]

    def settings(self) -> dict[str, Any]:
        """The options that matter, which tell configurations apart."""
        values: dict[str, Any] = {}
        for technique in self.active():
            values |= technique.settings or {type(technique).__name__: True}
        for field in fields(ReadingOptions):
            value = getattr(self, field.name)
            if value != field.default:
                values[field.name] = value
        return values
