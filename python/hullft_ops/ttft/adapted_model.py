"""An adapted model, and files that keep its adaptation."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hullft_ops._checks import check_integer
from hullft_ops.ttft._files import writing_folder
from hullft_ops.ttft.model.gguf import no_bars
from hullft_ops.ttft.model.scoring import score_text
from hullft_ops.ttft.model.snapshot import ModelSnapshot

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# PEFT's name for the model that it wraps.
_PREFIX = "base_model.model."


@dataclass(frozen=True)
class SavedAdapter:
    """What `AdaptationReport.save_adapter` wrote.

    Attributes:
        share: the share of the squared difference between the weights with and without the
            adaptation that the adapter keeps, in 0..1, over all trained parameters. It is 1 for
            adapters that were trained.
        left_out: the names of the trained parameters that changed and do not fit into a LoRA:
            norms, biases, embeddings, and layers that share their weight with another.
        bits_per_byte: of the text, "before" the adaptation, "adapted" and with the "saved" adapter;
            empty without a text.
    """

    share: float
    left_out: list[str]
    bits_per_byte: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class _Fitted:
    """The LoRA of a layer: ``b @ a``, float32, changes its weight ``[out, in]``."""

    layer: str
    is_transposed: bool
    b: torch.Tensor
    a: torch.Tensor

    @property
    def change(self) -> torch.Tensor:
        """In the shape that the weight is stored in."""
        product = self.b @ self.a
        return product.T if self.is_transposed else product


class AdaptedModel:
    """A model and its weights from before its adaptation.

    Args:
        model: the adapted model.
        tokenizer: its tokenizer.
        trained: the parameters that the adaptation changes.
        snapshot: holds their values from before.
        context: tokens that the model reads at once.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        trained: Sequence[nn.Parameter],
        snapshot: ModelSnapshot,
        context: int,
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._trained = trained
        self._snapshot = snapshot
        self._context = context

    def save_adapter(
        self,
        path: str | Path,
        *,
        rank: int | None,
        base_model: str | None,
        text: str | None,
        overwrite: bool,
    ) -> SavedAdapter:
        """See `AdaptationReport.save_adapter`."""
        adapter = _active_adapter(self._model)
        if (adapter is None) == (rank is None):
            said = "must be given" if adapter is None else "must be None"
            trained = "weights" if adapter is None else "adapters"
            raise ValueError(f"save_adapter: rank {said}, the model's {trained} are trained")
        with writing_folder(Path(path), overwrite=overwrite) as folder:
            # First, because it refuses a text that cannot be scored.
            adapted = None if text is None else self._score(text)
            share, left_out, fitted = 1.0, list[str](), dict[int, _Fitted]()
            if rank is None:
                self._write_trained(folder, str(adapter), base_model)
            else:
                rank = check_integer("save_adapter", "rank", rank, 1)
                fitted, share, left_out = self._fit(rank)
                base_model = base_model or self._model.name_or_path
                _write(folder, _lora_config(fitted, rank), _lora_weights(fitted), base_model)
            scores = {}
            if text is not None and adapted is not None:
                with self._holding(self._snapshot.saved):
                    scores = {"before": self._score(text), "adapted": adapted, "saved": adapted}
                if fitted:
                    with self._holding(self._with_changes(fitted)):
                        scores["saved"] = self._score(text)
        return SavedAdapter(share, left_out, scores)

    def save_pretrained(self, path: str | Path, *, overwrite: bool) -> None:
        """See `AdaptationReport.save_pretrained`."""
        if _active_adapter(self._model) is not None:
            raise ValueError("save_pretrained: the model's adapters are trained: use save_adapter")
        with writing_folder(Path(path), overwrite=overwrite) as folder:
            before = dict(vars(self._model.config))
            try:
                with no_bars():
                    # One file: no shard of an earlier model can stay behind.
                    self._model.save_pretrained(folder, max_shard_size="1000TB")
            finally:
                # transformers writes its strings for dtype and class into it.
                vars(self._model.config).update(before)
            # Without this call, a fast tokenizer's file would say where the last text was cut.
            self._tokenizer("", truncation=False)
            self._tokenizer.save_pretrained(folder)

    def _write_trained(self, folder: Path, adapter: str, base_model: str | None) -> None:
        from peft import get_peft_model_state_dict

        weights = get_peft_model_state_dict(
            self._model, adapter_name=adapter, save_embedding_layers=False
        )
        self._model.peft_config[adapter].save_pretrained(str(folder))
        content = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        # Other kinds may compute what they save.
        if content["peft_type"] == "LORA":
            self._check_complete(adapter, weights)
        content["inference_mode"] = True
        _write(folder, content, weights, base_model or content["base_model_name_or_path"])

    def _check_complete(self, adapter: str, weights: dict[str, torch.Tensor]) -> None:
        kept = {tensor.untyped_storage().data_ptr() for tensor in weights.values()}
        outside = [
            name
            for name, parameter in self._model.named_parameters()
            if parameter.requires_grad and parameter.untyped_storage().data_ptr() not in kept
        ]
        if outside:
            raise ValueError(
                f"save_adapter: all trained parameters must be of the adapter {adapter!r}, got "
                f"{len(outside)} others, {outside[0]} for one"
            )

    def _fit(self, rank: int) -> "tuple[dict[int, _Fitted], float, list[str]]":
        """The LoRA by the id of each parameter, the share that it keeps, and what it leaves out."""
        names = {id(parameter): name for name, parameter in self._model.named_parameters()}
        layers = _layers(self._model, self._trained)
        if not layers:
            raise ValueError("save_adapter: no trained parameter fits into a LoRA")
        fitted: dict[int, _Fitted] = {}
        left_out: list[str] = []
        total = lost = 0.0
        for parameter, before in zip(self._trained, self._snapshot.saved, strict=True):
            difference = parameter.detach().double() - before.double()
            squared = float(difference.square().sum())
            total += squared
            if id(parameter) in layers:
                name, is_transposed = layers[id(parameter)]
                factors = _low_rank(difference.T if is_transposed else difference, rank)
                found = fitted[id(parameter)] = _Fitted(name, is_transposed, *factors)
                lost += float((difference - found.change.double()).square().sum())
            elif squared:
                lost += squared
                left_out.append(names[id(parameter)])
        return fitted, 1 - lost / total if total else 1.0, left_out

    def _with_changes(self, fitted: "dict[int, _Fitted]") -> Iterator[torch.Tensor]:
        for parameter, before in zip(self._trained, self._snapshot.saved, strict=True):
            found = fitted.get(id(parameter))
            yield before if found is None else before + found.change

    @contextmanager
    def _holding(self, values: Iterable[torch.Tensor]) -> Iterator[None]:
        """Run the block with these values in the trained parameters."""
        adapted = [parameter.detach().clone() for parameter in self._trained]
        try:
            self._put(values)
            yield
        finally:
            self._put(adapted)

    def _put(self, values: Iterable[torch.Tensor]) -> None:
        with torch.inference_mode(False), torch.no_grad():
            for parameter, value in zip(self._trained, values, strict=True):
                parameter.copy_(value)
        # A caller's autocast holds copies of the other values.
        torch.clear_autocast_cache()

    def _score(self, text: str) -> float:
        return score_text(self._model, self._tokenizer, text, max_length=self._context).value


def _active_adapter(model: "PreTrainedModel") -> str | None:
    """The name of the model's adapter; None if it has none.

    Raises:
        ValueError: not one adapter is active, or the model is no PEFT model and has some.
    """
    if not getattr(model, "peft_config", None):
        return None
    names = getattr(model, "active_adapters", None)
    # A model of transformers with adapters in it has a method of that name.
    if not isinstance(names, list) or len(names) != 1:
        got = f"{len(names)}" if isinstance(names, list) else f"those of a {type(model).__name__}"
        raise ValueError(f"save_adapter: one adapter of a PeftModel must be active, got {got}")
    return str(names[0])


def _layers(model: nn.Module, trained: Sequence[nn.Parameter]) -> dict[int, tuple[str, bool]]:
    """The layers that a LoRA can change, by the id of their weight.

    Returns:
        The layer's name, and whether its weight is stored as ``[in, out]``.
    """
    from transformers.pytorch_utils import Conv1D

    uses = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    own = {id(parameter) for parameter in trained if uses[id(parameter)] == 1}
    return {
        id(module.weight): (name, isinstance(module, Conv1D))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and id(module.weight) in own
    }


def _lora_config(fitted: dict[int, _Fitted], rank: int) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "bias": "none",
        "target_modules": sorted(one.layer for one in fitted.values()),
        "fan_in_fan_out": any(one.is_transposed for one in fitted.values()),
    }


def _lora_weights(fitted: dict[int, _Fitted]) -> dict[str, torch.Tensor]:
    of_a = {f"{_PREFIX}{one.layer}.lora_A.weight": one.a for one in fitted.values()}
    return of_a | {f"{_PREFIX}{one.layer}.lora_B.weight": one.b for one in fitted.values()}


def _low_rank(matrix: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The best approximation of that rank, by the singular value decomposition.

    Args:
        matrix: float64 ``[m, n]``.
        rank: at least 1. If it is above the matrix's own, zeros fill up the factors.

    Returns:
        float32 ``[m, rank]`` and ``[rank, n]``.
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    # The singular vectors of the shorter side. In float64 the square costs nothing that counts.
    _, vectors = torch.linalg.eigh(wide @ wide.T)
    left = nn.functional.pad(vectors[:, -rank:], (0, max(0, rank - len(vectors))))
    right = left.T @ wide
    # Factors of one magnitude lose the least if a server casts them to float16.
    scale = right.norm(dim=1).sqrt()
    scale[scale == 0] = 1
    left, right = (left * scale).float(), (right / scale[:, None]).float()
    return (left, right) if wide is matrix else (right.T, left.T)


def _write(
    folder: Path, config: dict[str, Any], weights: dict[str, torch.Tensor], base_model: str | None
) -> None:
    from safetensors.torch import save_file

    content = json.dumps(config | {"base_model_name_or_path": base_model}, indent=2)
    (folder / ADAPTER_CONFIG).write_text(content, encoding="utf-8")
    # Cloned, because safetensors refuses views.
    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights.items()}
    save_file(copies, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
