"""An adapter: a LoRA that was trained on a whole datastore, added to the weights."""

from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from typing import Any

from hullft_ops.ttft.adapter import adapter_identity, read_adapter
from hullft_ops.ttft.language_model import LanguageModel
from hullft_ops.ttft.models.lora import add_lora
from hullft_ops.ttft.search import Neighbours
from hullft_ops.ttft.techniques.technique import Prepared, Technique
from hullft_ops.ttft.validation import options_class


@options_class
class AdapterOptions:
    """Which adapter is added."""

    adapter: str | None = None
    """Folder of a LoRA as PEFT saves it, added to the weights before the first step. Beside one,
    turn steps on the prompt and passages off, unless you measure that they help."""


class Adapter(Technique):
    """A LoRA is added to the weights."""

    switch = "adapter"
    trains = False

    def __init__(self, options: AdapterOptions) -> None:
        self._folder = str(options.adapter)
        self._prepared = Prepared()

    @cached_property
    def settings(self) -> Mapping[str, Any]:  # type: ignore[override]  # reads the folder
        """The folder and its content: another adapter in the same folder is another setting."""
        name = self._folder
        # `load` says what the folder lacks.
        with suppress(OSError):
            name += f" {adapter_identity(name)[:8]}"
        return {"adapter": name}

    def load(self, language_model: LanguageModel) -> None:
        """Read the folder. Raises as `read_adapter`."""
        layers = read_adapter(self._folder, language_model)
        self._prepared = Prepared(change_weights=lambda _: add_lora(layers))

    def prepare(
        self, neighbours: Neighbours, language_model: LanguageModel
    ) -> Prepared:
        return self._prepared
