"""An adapter: a LoRA that was trained on a whole datastore, added to the weights."""

import json
import warnings
from collections.abc import Iterable, Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

from hullft_ops.ttft.files import digest_of
from hullft_ops.ttft.language_model import LanguageModel
from hullft_ops.ttft.models.weights import trained_parameters
from hullft_ops.ttft.restore import unwrapped
from hullft_ops.ttft.search import Neighbours
from hullft_ops.ttft.techniques.technique import Prepared, Technique
from hullft_ops.ttft.terminal import listed
from hullft_ops.ttft.validation import input_errors, options_class

# What an adapter was trained with. PEFT ignores the file.
RECORD = "trained_with.json"
# The settings of a LoRA that is no more than a product added to each linear layer's weight.
_PLAIN = (
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_dropout",
    "peft_version",
    "r",
    "rank_pattern",
    "revision",
    "target_modules",
    "target_parameters",
    "task_type",
    "use_rslora",
)
# Other initial values are subtracted from the weights.
_PLAIN_INITIAL_VALUES = (True, False, "gaussian", "orthogonal")


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
        from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME

        folder, name = Path(self._folder), self._folder
        # `load` says what the folder lacks.
        with suppress(OSError):
            files = folder / CONFIG_NAME, folder / SAFETENSORS_WEIGHTS_NAME
            name += f" {digest_of(*files)[:8]}"
        return {"adapter": name}

    def load(self, language_model: LanguageModel) -> None:
        """Read the folder. Raises as `read_adapter`."""
        layers = read_adapter(self._folder, language_model)
        self._prepared = Prepared(change_weights=lambda _: add_lora(layers))

    def prepare(
        self, neighbours: Neighbours, language_model: LanguageModel
    ) -> Prepared:
        return self._prepared


def read_adapter(
    path: str | Path, language_model: LanguageModel
) -> list[tuple[nn.Parameter, Any]]:
    """Read a LoRA that PEFT saved, for `add_lora`.

    Raises:
        InputError: as `read_lora`; or `train_adapter` has trained it with other weights.
    """
    with input_errors(f"adapter {path}"):
        layers = read_lora(language_model.model, Path(path))
        if Path(path, RECORD).exists():
            identity = json.loads(Path(path, RECORD).read_bytes())["model"]
            if identity != language_model.model_identity:
                name = language_model.model.name_or_path
                raise ValueError(f"was trained with other weights than {name}'s")
    return layers


def read_lora(model: "PreTrainedModel", folder: Path) -> list[tuple[nn.Parameter, Any]]:
    """The LoRA that PEFT saved in a folder: each weight that it changes, and PEFT's layer for it.

    Raises any exception of PEFT for a damaged folder, and ValueError if the LoRA is more than a
    plain one, is of another model or not finite, changes a weight that the model does not train, or
    if there are other tensors beside it.
    """
    from peft import PeftModel
    from peft.tuners.lora import Linear
    from peft.tuners.lora.layer import ParamWrapper
    from peft.tuners.tuners_utils import BaseTunerLayer

    if getattr(model, "peft_config", None):
        raise ValueError("the model must have no adapters, got a PEFT model")
    config = _plain_config(folder)
    with quiet():
        adapted: Any = PeftModel.from_pretrained(
            sharing_weights(model),
            str(folder),
            config=config,
            torch_device=str(model.device),
            # What the file lacks, or has in another shape, stays on the meta device.
            low_cpu_mem_usage=True,
            ignore_mismatched_sizes=True,
        )
    _check_tensors(folder, adapted)
    trained = {p.data_ptr(): p for p in trained_parameters(model).values()}
    layers = []
    for name, layer in adapted.get_base_model().named_modules():
        if not isinstance(layer, BaseTunerLayer):
            continue
        if type(layer) not in (Linear, ParamWrapper):
            raise ValueError(f"must be of linear layers, has {name}")
        # PEFT wraps the stacked weights of experts without a layer of their own.
        shared = getattr(
            layer.get_base_layer(), getattr(layer, "parameter_name", "weight")
        )
        weight = trained.get(shared.data_ptr())
        if weight is None:
            raise ValueError(f"the model must train {name}")
        if not layer.get_delta_weight("default").to(weight).isfinite().all():
            raise ValueError(f"the factors of {name} are not finite")
        layers.append((weight, layer))
    return layers


def _plain_config(folder: Path) -> Any:
    """The configuration of a LoRA. ValueError if it holds more than a plain one."""
    from peft import LoraConfig, PeftConfig
    from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME

    for name in (CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME):
        # PEFT would unpickle another file, or ask the hub.
        if not (folder / name).is_file():
            raise FileNotFoundError(f"has no {name}")
    config = PeftConfig.from_pretrained(str(folder))
    settings, defaults = asdict(config), asdict(LoraConfig())
    if settings.get("init_lora_weights") in _PLAIN_INITIAL_VALUES:
        del settings["init_lora_weights"]
    extensions = [
        name
        for name, value in sorted(settings.items())
        if name not in _PLAIN and value != defaults.get(name)
    ]
    if extensions:
        raise ValueError(f"must be a plain LoRA, sets {', '.join(extensions)}")
    return config


def _check_tensors(folder: Path, adapted: Any) -> None:
    """ValueError unless the file has the factors of the model's layers and no other tensor: PEFT
    saves trained embeddings, for one, without a word in the configuration."""
    from peft import get_peft_model_state_dict
    from peft.utils import SAFETENSORS_WEIGHTS_NAME
    from safetensors.torch import load_file

    tensors = load_file(folder / SAFETENSORS_WEIGHTS_NAME)
    factors = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    stored = {(name, *tensor.shape) for name, tensor in tensors.items()}
    others = stored ^ {(name, *factor.shape) for name, factor in factors.items()}
    if others:
        names = sorted({str(name) for name, *_ in others})
        raise ValueError(
            f"must have the factors of the model's layers alone, not so: {listed(names)}"
        )


@torch.no_grad()
def add_lora(layers: Iterable[tuple[nn.Parameter, Any]]) -> None:
    """Add to each weight what PEFT's layer adds to its output, in place."""
    for weight, layer in layers:
        weight.add_(layer.get_delta_weight("default").to(weight))
    # A caller's autocast holds copies of the weights before.
    torch.clear_autocast_cache()


def sharing_weights(model: "PreTrainedModel") -> "PreTrainedModel":
    """A copy of the model that shares its weights, but not their flags."""
    frozen = {
        id(parameter): nn.Parameter(parameter.detach(), requires_grad=False)
        for parameter in model.parameters()
    }
    return deepcopy(unwrapped(model), frozen)


def quiet() -> warnings.catch_warnings:
    """Without the warnings of PEFT, which reads a property that transformers has renamed."""
    return warnings.catch_warnings(action="ignore")
