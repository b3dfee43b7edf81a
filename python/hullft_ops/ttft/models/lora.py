"""PEFT's LoRAs: put around a model, read from a folder, added to weights, and saved."""

import warnings
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import asdict
from inspect import isfunction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

from hullft_ops.ttft.models.weights import trained_parameters
from hullft_ops.ttft.restore import unwrapped
from hullft_ops.ttft.terminal import listed

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


def with_lora(model: "PreTrainedModel", rank: int) -> Any:
    """A PEFT model with a new LoRA around every linear layer but the head."""
    from peft import LoraConfig, get_peft_model

    # It would run the model, not its copy.
    if isfunction(vars(unwrapped(model)).get("forward")):
        raise ValueError("model must not have a forward of its own, as torch.compile's")
    # A router that returns a tuple, or a product in groups, is more than a linear layer.
    others = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and type(module).forward is not nn.Linear.forward
    ]
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules="all-linear",
        exclude_modules=others,
        task_type="CAUSAL_LM",
    )
    with _quiet():
        return get_peft_model(_sharing_weights(model), config)


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
    with _quiet():
        adapted: Any = PeftModel.from_pretrained(
            _sharing_weights(model),
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


def _sharing_weights(model: "PreTrainedModel") -> "PreTrainedModel":
    """A copy of the model that shares its weights, but not their flags."""
    frozen = {
        id(parameter): nn.Parameter(parameter.detach(), requires_grad=False)
        for parameter in model.parameters()
    }
    return deepcopy(unwrapped(model), frozen)


def _quiet() -> warnings.catch_warnings:
    """Without the warnings of PEFT, which reads a property that transformers has renamed."""
    return warnings.catch_warnings(action="ignore")
