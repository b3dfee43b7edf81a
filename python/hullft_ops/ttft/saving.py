"""An adaptation as a folder that PEFT loads."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

from hullft_ops._checks import check_integer
from hullft_ops.ttft.files import new_folder

_PREFIX = "base_model.model."


@dataclass(frozen=True)
class SavedAdapter:
    """What `Adaptation.save_adapter` wrote.

    Attributes:
        path: the folder.
        share: how much of the squared change of all trained parameters the adapter keeps, in 0..1;
            1 for adapters that were trained.
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
    base_model: str | None,
    overwrite: bool,
) -> SavedAdapter:
    """Write the change of ``trained`` from ``original``, see `Adaptation.save_adapter`."""
    check_rank(model, trained, rank)
    with new_folder(path, overwrite=overwrite) as folder:
        if rank is None:
            _write_trained(folder, model, base_model)
            share, left_out = 1.0, list[str]()
        else:
            lora = _LowRank(model, trained, original, rank)
            name = base_model or model.name_or_path
            _write(
                folder, lora.config | {"base_model_name_or_path": name}, lora.weights
            )
            share, left_out = lora.share, lora.left_out
    return SavedAdapter(Path(path), share, left_out)


def check_rank(
    model: "PreTrainedModel", trained: Sequence[nn.Parameter], rank: int | None
) -> None:
    """Refuse a rank that `Adaptation.save_adapter` could not write, before the training."""
    is_peft = bool(getattr(model, "peft_config", None))
    if is_peft != (rank is None):
        must = (
            "must be None: the model's adapters are"
            if is_peft
            else "must be an int: weights are"
        )
        raise ValueError(f"save_adapter: rank {must} trained, got {rank}")
    if rank is None:
        return
    layers = _layers(model, trained)
    if not layers:
        raise ValueError("save_adapter: no trained parameter fits into a LoRA")
    # More than the shorter side of every layer would only add zeros.
    highest = max(min(weight.shape) for weight in trained if id(weight) in layers)
    check_integer("save_adapter", "rank", rank, 1, highest)


def _write_trained(
    folder: Path, model: "PreTrainedModel", base_model: str | None
) -> None:
    from peft import get_peft_model_state_dict

    names: Any = getattr(model, "active_adapters", None)
    # A model of transformers with adapters in it has a method of that name.
    if not isinstance(names, list) or len(names) != 1:
        raise ValueError(
            f"save_adapter: one adapter of a PeftModel must be active, got {names}"
        )
    weights = get_peft_model_state_dict(
        model, adapter_name=names[0], save_embedding_layers=False
    )
    peft_config: Any = model.peft_config[names[0]]
    config = peft_config.to_dict()
    if base_model is not None:
        config["base_model_name_or_path"] = base_model
    _write(folder, config, weights)


class _LowRank:
    """For each linear layer, the LoRA closest to the change of its weight."""

    def __init__(
        self,
        model: "PreTrainedModel",
        trained: Sequence[nn.Parameter],
        original: Sequence[Tensor],
        rank: int,
    ) -> None:
        layers = _layers(model, trained)
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        self.weights: dict[str, Tensor] = {}
        self.left_out: list[str] = []
        total = lost = 0.0
        for parameter, before in zip(trained, original, strict=True):
            change = parameter.detach().double() - before.double()
            squared = float(change.square().sum())
            total += squared
            if id(parameter) not in layers:
                lost += squared
                if squared:
                    self.left_out.append(names[id(parameter)])
                continue
            name, is_transposed = layers[id(parameter)]
            if is_transposed:
                change = change.T
            b, a = _factors(change, rank)
            lost += float((change - (b @ a).double()).square().sum())
            self.weights[f"{_PREFIX}{name}.lora_A.weight"] = a
            self.weights[f"{_PREFIX}{name}.lora_B.weight"] = b
        self.share = 1 - lost / total if total else 1.0
        self.config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "r": rank,
            "lora_alpha": rank,
            "bias": "none",
            "target_modules": sorted(name for name, _ in layers.values()),
            "fan_in_fan_out": any(transposed for _, transposed in layers.values()),
        }


def _layers(
    model: nn.Module, trained: Sequence[nn.Parameter]
) -> dict[int, tuple[str, bool]]:
    """The layers that a LoRA can change, by their weight's id, and whether it is ``[in, out]``."""
    from transformers.pytorch_utils import Conv1D

    uses = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    alone = {id(parameter) for parameter in trained if uses[id(parameter)] == 1}
    layers = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and id(module.weight) in alone:
            layers[id(module.weight)] = name, isinstance(module, Conv1D)
    return layers


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


def _write(folder: Path, config: dict[str, Any], weights: dict[str, Tensor]) -> None:
    from safetensors.torch import save_file

    # The order of a set differs from process to process.
    plain = {k: sorted(v) if isinstance(v, set) else v for k, v in config.items()}
    plain["inference_mode"] = True
    content = json.dumps(plain, indent=2, sort_keys=True, default=str)
    (folder / "adapter_config.json").write_text(content, encoding="utf-8")
    # Cloned, because safetensors refuses views.
    copies = {n: t.detach().cpu().contiguous().clone() for n, t in weights.items()}
    save_file(copies, folder / "adapter_model.safetensors", metadata={"format": "pt"})
