"""An adaptation as a folder that PEFT loads."""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

from hullft_ops._checks import check_integer
from hullft_ops.ttft.files import new_folder
from hullft_ops.ttft.models.lora import parameter_uses, with_lora

_FILES = ("adapter_config.json", "adapter_model.safetensors")


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
    return with_lora(model, list(layers.values()), rank, is_empty=True)


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
