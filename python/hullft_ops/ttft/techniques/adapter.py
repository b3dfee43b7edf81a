"""An adapter: a LoRA that was trained on a whole datastore, added to the weights."""

from pathlib import Path
from typing import Any

from hullft_ops.ttft.adapter import adapter_identity, read_adapter
from hullft_ops.ttft.models.lora import add_lora
from hullft_ops.ttft.reader import Reader
from hullft_ops.ttft.retrieval import Neighbours
from hullft_ops.ttft.techniques.technique import Prepared, Technique, TechniqueOptions
from hullft_ops.ttft.validation import options_class


@options_class
class AdapterOptions(TechniqueOptions):
    """Which adapter is added."""

    adapter: str | None = None
    """Folder of a LoRA as PEFT saves it, added to the weights before the first step. Beside one,
    set `train_on_prompt` and `context` to 0, unless you measure that they help."""

    def technique(self) -> Technique | None:
        """None if no adapter is added."""
        return None if self.adapter is None else Adapter(self.adapter)


class Adapter(Technique):
    """A LoRA is added to the weights.

    Args:
        folder: where PEFT saved it.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._prepared = Prepared()

    trains = False

    @property
    def settings(self) -> dict[str, Any]:
        # `load` refuses a folder that is not there.
        if not Path(self._folder).is_dir():
            return {"adapter": self._folder}
        # Another adapter in the same folder is another setting.
        return {"adapter": f"{self._folder} {adapter_identity(self._folder)[:8]}"}

    def load(self, reader: Reader) -> None:
        """Read the folder. Raises as `read_adapter`."""
        layers = read_adapter(self._folder, reader)
        self._prepared = Prepared(change_weights=lambda _: add_lora(layers))

    def prepare(self, neighbours: Neighbours, reader: Reader) -> Prepared:
        return self._prepared
