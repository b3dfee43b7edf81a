"""Training an expert on the texts of its cluster."""

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hullft_ops._extras import needed_by
from hullft_ops.ttft.errors import NonFiniteLossError
from hullft_ops.ttft.experts.folder import DIFFERENCE_FILE, Manifest, adapter_files
from hullft_ops.ttft.model.memory import out_of_memory_explained
from hullft_ops.ttft.retrieval.support import MIN_TOKENS
from hullft_ops.ttft.store.base import Store
from hullft_ops.ttft.training.checks import trainable_parameters
from hullft_ops.ttft.training.steps import StageClock
from hullft_ops.ttft.training.trainer import SupportTrainer

_FUNCTION = "build_experts"


@dataclass
class ExpertTrainer:
    """Trains one expert after the other, each from the base model."""

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    store: Store
    manifest: Manifest

    def __post_init__(self) -> None:
        model, manifest = self.model, self.manifest
        self._full = manifest.kind == "full"
        self._base: list[torch.Tensor] = [*trainable_parameters(model)]
        self._copy: Any = (
            copy.deepcopy(model) if self._full else _with_adapter(model, manifest)
        )
        self._trained = trainable_parameters(self._copy)
        self._clock = StageClock(model.device)
        self._trainer = SupportTrainer(
            self._copy,
            self._trained,
            lr=manifest.lr,
            order="grouped",
            schedule="linear",
            max_grad_norm=None,
            autocast=None if manifest.dtype is None else torch.bfloat16,
        )

    def files(self, expert: int, positions: list[int]) -> dict[str, bytes]:
        """The expert's files. It is trained on the texts at these positions."""
        self._reset(expert)
        manifest, texts = self.manifest, dict[int, list[int]]()
        for position in positions:
            if len(texts) == manifest.passages:
                break
            text = self.store.texts[position]
            tokens = self.tokenizer(
                text, truncation=True, max_length=manifest.max_length
            )
            if len(tokens["input_ids"]) >= MIN_TOKENS:
                texts[position] = list(tokens["input_ids"])
        once = [1] * len(texts)
        try:
            with out_of_memory_explained(
                "out of memory while training experts: lower max_length"
            ):
                self._trainer.train(
                    [*texts.values()], [*texts], once, once, self._clock
                )
        except NonFiniteLossError as error:
            said = f"{_FUNCTION}: cluster {expert}: a loss is not finite: lower lr"
            raise NonFiniteLossError(said) from error
        if not self._full:
            from peft import get_peft_model_state_dict

            config = self._copy.peft_config["default"].to_dict()
            return adapter_files(config, get_peft_model_state_dict(self._copy))
        names = [name for name, p in self._copy.named_parameters() if p.requires_grad]
        pairs = zip(names, self._trained, self._base, strict=True)
        return {DIFFERENCE_FILE: save({n: (p - base).detach() for n, p, base in pairs})}

    @torch.no_grad()
    def _reset(self, expert: int) -> None:
        """Make the copy the base model again, with new adapters."""
        if self._full:
            torch._foreach_copy_([*self._trained], self._base)
            return
        device = self._copy.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed((self.manifest.seed << 16) + expert)
            for module in self._copy.modules():
                if hasattr(module, "reset_lora_parameters"):
                    module.reset_lora_parameters("default", True)


def _with_adapter(model: "PreTrainedModel", manifest: Manifest) -> Any:
    """A PEFT model around a copy of the model that shares its weights, but not their flags."""
    with needed_by(_FUNCTION):
        from peft import LoraConfig, TaskType, get_peft_model

    shared = {
        id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()
    }
    config = LoraConfig(
        r=manifest.rank,
        lora_alpha=manifest.rank,
        target_modules="all-linear",
        fan_in_fan_out=manifest.fan_in_fan_out,
        task_type=TaskType.CAUSAL_LM,
    )
    return get_peft_model(copy.deepcopy(model, shared), config)
