"""An adapted model, and files that keep its adaptation."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hullft_ops._checks import check_integer
from hullft_ops.ttft._files import writing_folder
from hullft_ops.ttft.experts.folder import (
    BEFORE,
    LORA_A,
    LORA_B,
    Factors,
    adapter_files,
)
from hullft_ops.ttft.model.gguf import no_bars
from hullft_ops.ttft.model.scoring import score_text
from hullft_ops.ttft.model.snapshot import ModelSnapshot, put


@dataclass(frozen=True)
class SavedAdapter:
    """What `AdaptationReport.save_adapter` wrote.

    Attributes:
        share: how much of the squared change of all trained parameters the adapter keeps, in 0..1;
            1 for adapters that were trained.
        left_out: the names of the trained parameters that changed and do not fit into a LoRA:
            norms, biases, embeddings, and layers that share their weight with another.
        bits_per_byte: of the text, "before" the adaptation, "adapted" and with the "saved" adapter;
            empty without a text.
    """

    share: float
    left_out: list[str]
    bits_per_byte: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class AdaptedModel:
    """A model that reads ``context`` tokens at once, and its weights from before its adaptation."""

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    trained: Sequence[nn.Parameter]
    snapshot: ModelSnapshot
    context: int

    def save_adapter(
        self,
        path: Path,
        rank: int | None,
        base_name: str | None,
        text: str | None,
        overwrite: bool,
    ) -> SavedAdapter:
        """See `AdaptationReport.save_adapter`."""
        adapter = _active_adapter(self.model)
        if (adapter is None) == (rank is None):
            said = "must be given" if adapter is None else "must be None"
            trained = "weights" if adapter is None else "adapters"
            raise ValueError(
                f"save_adapter: rank {said}, the model's {trained} are trained"
            )
        with writing_folder(path, overwrite=overwrite) as folder:
            # First, because it refuses a text that cannot be scored.
            scores = {} if text is None else {"adapted": self._score(text)}
            share, left_out, fitted = 1.0, list[str](), list[Factors | None]()
            if rank is None:
                self._write_trained(folder, str(adapter), base_name)
            else:
                rank = check_integer("save_adapter", "rank", rank, 1)
                base_name = base_name or self.model.name_or_path
                share, left_out, fitted = self._write_lora(folder, rank, base_name)
            if text is not None:
                before = self.snapshot.saved
                scores["before"] = self._score_with(before, text)
                scores["saved"] = scores["adapted"]
                if fitted:
                    pairs = zip(before, fitted, strict=True)
                    values = (
                        v if found is None else v + found.b @ found.a
                        for v, found in pairs
                    )
                    scores["saved"] = self._score_with(values, text)
        return SavedAdapter(share, left_out, scores)

    def save_pretrained(self, path: Path, overwrite: bool) -> None:
        """See `AdaptationReport.save_pretrained`."""
        if _active_adapter(self.model) is not None:
            raise ValueError(
                "save_pretrained: the model's adapters are trained: use save_adapter"
            )
        with writing_folder(path, overwrite=overwrite) as folder:
            before = dict(vars(self.model.config))
            try:
                with no_bars():
                    # One file: no shard of an earlier model can stay behind.
                    self.model.save_pretrained(folder, max_shard_size="1000TB")
            finally:
                # transformers writes its strings for dtype and class into it.
                vars(self.model.config).update(before)
            # Without this call, a fast tokenizer's file would say where the last text was cut.
            self.tokenizer("", truncation=False)
            self.tokenizer.save_pretrained(folder)

    def _write_trained(self, folder: Path, adapter: str, base_name: str | None) -> None:
        from peft import get_peft_model_state_dict

        weights = get_peft_model_state_dict(
            self.model, adapter_name=adapter, save_embedding_layers=False
        )
        config: Any = self.model.peft_config[adapter]
        config = config.to_dict()
        kept = {tensor.untyped_storage().data_ptr() for tensor in weights.values()}
        outside = [
            name
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad
            and parameter.untyped_storage().data_ptr() not in kept
        ]
        # Other kinds may compute what they save.
        if outside and config["peft_type"] == "LORA":
            raise ValueError(
                f"save_adapter: all trained parameters must be of the adapter {adapter!r}, got "
                f"{len(outside)} others, for example {outside[0]}"
            )
        config |= {
            "base_model_name_or_path": base_name or config["base_model_name_or_path"]
        }
        _write(folder, config, weights)

    def _write_lora(
        self, folder: Path, rank: int, base_name: str | None
    ) -> tuple[float, list[str], list[Factors | None]]:
        """The share that it keeps, what it leaves out, and the factors of each parameter."""
        layers = _layers(self.model, self.trained)
        if not layers:
            raise ValueError("save_adapter: no trained parameter fits into a LoRA")
        names = {
            id(parameter): name for name, parameter in self.model.named_parameters()
        }
        weights: dict[str, torch.Tensor] = {}
        fitted: list[Factors | None] = []
        left_out: list[str] = []
        total = lost = 0.0
        for parameter, before in zip(self.trained, self.snapshot.saved, strict=True):
            difference = parameter.detach().double() - before.double()
            squared = float(difference.square().sum())
            total += squared
            fitted.append(None)
            if id(parameter) in layers:
                name, is_transposed = layers[id(parameter)]
                b, a, _ = fitted[-1] = _low_rank(difference, rank)
                lost += float((difference - (b @ a).double()).square().sum())
                weights[f"{BEFORE}{name}{LORA_A}"] = b.T if is_transposed else a
                weights[f"{BEFORE}{name}{LORA_B}"] = a.T if is_transposed else b
            elif squared:
                lost += squared
                left_out.append(names[id(parameter)])
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "r": rank,
            "lora_alpha": rank,
            "bias": "none",
            "target_modules": sorted(name for name, _ in layers.values()),
            "fan_in_fan_out": any(
                is_transposed for _, is_transposed in layers.values()
            ),
            "base_model_name_or_path": base_name,
        }
        _write(folder, config, weights)
        return 1 - lost / total if total else 1.0, left_out, fitted

    def _score_with(self, values: Iterable[torch.Tensor], text: str) -> float:
        """The score with these values in the trained parameters."""
        adapted = [parameter.detach().clone() for parameter in self.trained]
        try:
            put(values, self.trained)
            return self._score(text)
        finally:
            put(adapted, self.trained)

    def _score(self, text: str) -> float:
        return score_text(
            self.model, self.tokenizer, text, max_length=self.context
        ).value


def _active_adapter(model: "PreTrainedModel") -> str | None:
    """The name of the model's adapter; None if it has none. ValueError unless one is active."""
    if not getattr(model, "peft_config", None):
        return None
    names = getattr(model, "active_adapters", None)
    # A model of transformers with adapters in it has a method of that name.
    if not isinstance(names, list) or len(names) != 1:
        got = (
            f"{len(names)}"
            if isinstance(names, list)
            else f"those of a {type(model).__name__}"
        )
        raise ValueError(
            f"save_adapter: one adapter of a PeftModel must be active, got {got}"
        )
    return str(names[0])


def _layers(
    model: nn.Module, trained: Sequence[nn.Parameter]
) -> dict[int, tuple[str, bool]]:
    """The layers that a LoRA can change, by their weight's id, and whether it is ``[in, out]``."""
    from transformers.pytorch_utils import Conv1D

    uses = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    own = {id(parameter) for parameter in trained if uses[id(parameter)] == 1}
    return {
        id(module.weight): (name, isinstance(module, Conv1D))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and id(module.weight) in own
    }


def _low_rank(matrix: torch.Tensor, rank: int) -> Factors:
    """The best approximation of a float64 matrix by factors of that rank, in float32, by the
    singular value decomposition. Zeros fill up the factors if need be."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    # The singular vectors of the shorter side. In float64 the square costs nothing that counts.
    _, vectors = torch.linalg.eigh(wide @ wide.T)
    left = nn.functional.pad(vectors[:, -rank:], (0, max(0, rank - len(vectors))))
    right = left.T @ wide
    # Factors of one magnitude lose the least if a server casts them to float16.
    scale = right.norm(dim=1).sqrt()
    scale[scale == 0] = 1
    left, right = (left * scale).float(), (right / scale[:, None]).float()
    return (
        Factors(left, right, 1.0) if wide is matrix else Factors(right.T, left.T, 1.0)
    )


def _write(
    folder: Path, config: dict[str, Any], weights: dict[str, torch.Tensor]
) -> None:
    for name, content in adapter_files(config, weights).items():
        (folder / name).write_bytes(content)
