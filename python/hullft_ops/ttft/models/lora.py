"""PEFT's LoRAs: put around a model, read from a folder, added to weights, and saved."""

import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from copy import copy, deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

from hullft_ops._checks import check_integer
from hullft_ops._terminal import listed
from hullft_ops.ttft.files import new_folder

_FILES = ("adapter_config.json", "adapter_model.safetensors")
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


def read_lora(model: "PreTrainedModel", folder: Path) -> list[tuple[nn.Parameter, Any]]:
    """The LoRA that PEFT saved in a folder: each weight that it changes, and PEFT's layer for it.

    Raises any exception of PEFT for a damaged folder, and ValueError if the LoRA is more than a
    plain one, is of another model or not finite, changes a weight that the model does not train or
    uses in two layers, or if there are other tensors beside it.
    """
    from peft import PeftModel
    from peft.tuners.lora import Linear
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
    modules: dict[str, Any] = dict(model.named_modules())
    uses = parameter_uses(model)
    layers = []
    for name, layer in adapted.get_base_model().named_modules():
        if not isinstance(layer, BaseTunerLayer):
            continue
        if type(layer) is not Linear:
            raise ValueError(f"must be of linear layers, has {name}")
        weight = modules[name].weight
        if not weight.requires_grad or uses[id(weight)] > 1:
            raise ValueError(f"the model must train {name}, and use it only there")
        _check_factors(name, layer, weight)
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
    """ValueError if the file has a tensor that is no factor of a layer: PEFT saves trained
    embeddings, for one, without a word in the configuration."""
    from peft import get_peft_model_state_dict
    from peft.utils import SAFETENSORS_WEIGHTS_NAME
    from safetensors import safe_open

    with safe_open(folder / SAFETENSORS_WEIGHTS_NAME, "pt") as file:
        names = set(file.keys())
    factors = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    others = sorted(names - factors.keys())
    if others:
        raise ValueError(
            f"must have only the factors of the model's layers, has {listed(others)}"
        )


def _check_factors(name: str, layer: Any, weight: Tensor) -> None:
    factors = [layer.lora_B["default"].weight, layer.lora_A["default"].weight]
    if any(factor.is_meta for factor in factors):
        shapes = " and ".join(str(list(factor.shape)) for factor in factors)
        raise ValueError(f"must have factors of {name} of shapes {shapes}")
    if not layer.get_delta_weight("default").to(weight).isfinite().all():
        raise ValueError(f"the factors of {name} are not finite")


@torch.no_grad()
def add_lora(layers: Iterable[tuple[nn.Parameter, Any]]) -> None:
    """Add to each weight what PEFT's layer adds to its output, in place."""
    for weight, layer in layers:
        weight.add_(layer.get_delta_weight("default").to(weight))
    # A caller's autocast holds copies of the weights before.
    torch.clear_autocast_cache()


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


@dataclass(frozen=True)
class SavedAdapter:
    """What `Adaptation.save_adapter` wrote.

    Attributes:
        path: the folder.
        share: how much of the squared change of all trained parameters the adapter keeps, in 0..1;
            1 for adapters that were trained, 0 if nothing has changed.
        left_out: the names of the trained parameters that changed and do not fit into a LoRA:
            norms, biases, embeddings, and layers that share their weight with another.
    """

    path: Path
    share: float
    left_out: list[str]


def save_adapter(
    model: "PreTrainedModel",
    trained: Sequence[nn.Parameter],
    original: Sequence[Tensor],
    path: str | Path,
    *,
    rank: int | None,
) -> SavedAdapter:
    """Write the change of ``trained`` from ``original``, see `Adaptation.save_adapter`."""
    adapter = adapter_to_save(model, trained, rank)
    with new_folder(path, _FILES) as folder:
        share, left_out = 1.0, list[str]()
        if rank is not None:
            share, left_out = _fill(adapter, model, trained, original, rank)
        _write(folder, adapter)
    return SavedAdapter(Path(path), share, left_out)


def adapter_to_save(
    model: "PreTrainedModel", trained: Sequence[nn.Parameter], rank: int | None
) -> Any:
    """The model with its adapters if these are trained, else one with an empty LoRA of this rank.

    Call it before the training, to refuse what could not be saved.
    """
    is_peft = bool(getattr(model, "peft_config", None))
    if is_peft != (rank is None):
        must = (
            "must be None: the model's adapters are"
            if is_peft
            else "must be an int: weights are"
        )
        raise ValueError(f"save_adapter: rank {must} trained, got {rank}")
    if rank is None:
        return model
    layers = _layers(model, trained)
    if not layers:
        raise ValueError("save_adapter: no trained parameter fits into a LoRA")
    # More than the shorter side of every layer would only add zeros.
    highest = max(min(weight.shape) for weight in trained if id(weight) in layers)
    check_integer("save_adapter", "rank", rank, 1, highest)
    lora = with_lora(model, list(layers.values()), rank, is_empty=True)
    if lora.peft_config["default"].target_parameters:
        raise ValueError(
            "save_adapter: PEFT takes layers of this model for its experts, which have their names"
        )
    return lora


def _fill(
    lora: Any,
    model: "PreTrainedModel",
    trained: Sequence[nn.Parameter],
    original: Sequence[Tensor],
    rank: int,
) -> tuple[float, list[str]]:
    """Give each layer the LoRA closest to the change of its weight.

    Returns the share of the squared change that they keep, and the names of other parameters that
    have changed.
    """
    layers = _layers(model, trained)
    modules: dict[str, Any] = dict(lora.get_base_model().named_modules())
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    left_out = []
    total = lost = 0.0
    for parameter, before in zip(trained, original, strict=True):
        change = parameter.detach().double() - before.double()
        squared = float(change.square().sum())
        total += squared
        if id(parameter) not in layers:
            lost += squared
            if squared:
                left_out.append(names[id(parameter)])
            continue
        layer = modules[layers[id(parameter)]]
        if layer.fan_in_fan_out:
            change = change.T
        b, a = _factors(change, rank)
        lost += float((change - (b @ a).double()).square().sum())
        layer.lora_A["default"].weight = nn.Parameter(a)
        layer.lora_B["default"].weight = nn.Parameter(b)
    return (1 - lost / total if total else 0.0), left_out


def _layers(model: nn.Module, trained: Sequence[nn.Parameter]) -> dict[int, str]:
    """The names of the layers that a LoRA can change, by their weight's id."""
    from transformers.pytorch_utils import Conv1D

    uses = parameter_uses(model)
    alone = {id(parameter) for parameter in trained if uses[id(parameter)] == 1}
    return {
        id(module.weight): name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and id(module.weight) in alone
    }


def _factors(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """B ``[out, rank]`` and A ``[rank, in]``, float32: the best approximation of a float64 matrix,
    by the singular value decomposition. Zeros fill up the factors if need be."""
    is_tall = matrix.shape[0] > matrix.shape[1]
    wide = matrix.T if is_tall else matrix
    # The singular vectors of the shorter side. In float64 the square costs nothing that counts.
    _, vectors = torch.linalg.eigh(wide @ wide.T)
    left = nn.functional.pad(vectors[:, -rank:], (0, max(0, rank - len(vectors))))
    right = left.T @ wide
    # Factors of one magnitude lose the least if a server casts them to float16.
    scale = right.norm(dim=1).sqrt()
    scale[scale == 0] = 1
    left, right = (left * scale).float(), (right / scale[:, None]).float()
    return (right.T, left.T) if is_tall else (left, right)


def _write(folder: Path, model: Any) -> None:
    """Write the one adapter of a PEFT model that is active."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save

    names = getattr(model, "active_adapters", None)
    # A model of transformers with adapters in it has a method of that name.
    if not isinstance(names, list) or len(names) != 1:
        raise ValueError(
            f"save_adapter: one adapter of a PeftModel must be active, got {names}"
        )
    [name] = names
    config = copy(model.peft_config[name])
    config.inference_mode = True
    config.save_pretrained(str(folder))
    weights = get_peft_model_state_dict(
        model, adapter_name=name, save_embedding_layers=False
    )
    # Cloned, because safetensors refuses views.
    copies = {n: t.detach().cpu().contiguous().clone() for n, t in weights.items()}
    # Its own writer does not raise an OSError where the disk is full.
    content = save(copies, metadata={"format": "pt"})
    (folder / "adapter_model.safetensors").write_bytes(content)
