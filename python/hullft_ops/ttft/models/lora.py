"""PEFT's LoRAs around a model, which itself stays as it is."""

import warnings
from collections import Counter
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

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
    "task_type",
    "use_rslora",
)
# Other initial values are subtracted from the weights.
_PLAIN_INITIAL_VALUES = (True, False, "gaussian", "orthogonal")


def with_lora(
    model: "PreTrainedModel",
    target_modules: str | list[str],
    rank: int,
    *,
    is_empty: bool = False,
) -> Any:
    """A PEFT model with a new LoRA around the model's weights; an empty one is on the meta device.

    ValueError if PEFT cannot put LoRAs around all of these modules.
    """
    from peft import LoraConfig, get_peft_model
    from transformers.pytorch_utils import Conv1D

    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=target_modules,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        task_type="CAUSAL_LM",
    )
    with _quiet():
        try:
            return get_peft_model(
                _sharing_weights(model), config, low_cpu_mem_usage=is_empty
            )
        except ValueError as error:
            # PEFT goes on with advice for its own arguments.
            reason = str(error).partition(". ")[0]
            raise ValueError(f"PEFT cannot adapt this model: {reason}") from error


def read_lora(model: "PreTrainedModel", folder: Path) -> dict[str, Any]:
    """PEFT's layers for the LoRA in a folder, around the model's weights, by the layer's name.

    Raises any exception of PEFT for a damaged folder, and ValueError for one that holds more than
    a plain LoRA.
    """
    from peft import LoraConfig, PeftConfig, PeftModel
    from peft.tuners.lora import Linear
    from peft.tuners.tuners_utils import BaseTunerLayer
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
    with _quiet():
        adapted: Any = PeftModel.from_pretrained(
            _sharing_weights(model),
            str(folder),
            config=config,
            torch_device="cpu",
            # What the file lacks, or has in another shape, stays on the meta device.
            low_cpu_mem_usage=True,
            ignore_mismatched_sizes=True,
        )
    layers: dict[str, Any] = {}
    for name, layer in adapted.get_base_model().named_modules():
        if isinstance(layer, BaseTunerLayer):
            if type(layer) is not Linear:
                raise ValueError(f"must be of linear layers, has {name}")
            layers[name] = layer
    return layers


def parameter_uses(model: nn.Module) -> Counter[int]:
    """In how many places the model has each parameter, by its id: more than one if it is shared."""
    return Counter(
        id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False)
    )


def _sharing_weights(model: "PreTrainedModel") -> "PreTrainedModel":
    """A copy of the model that shares its weights, but not their flags."""
    frozen = {
        id(parameter): nn.Parameter(parameter.detach(), requires_grad=False)
        for parameter in model.parameters()
    }
    return deepcopy(model, frozen)


def _quiet() -> warnings.catch_warnings:
    """Without the warnings of PEFT, which reads a property that transformers has renamed."""
    return warnings.catch_warnings(action="ignore")
