"""A finetuner with a prompt, and the loops of `benchmarks.loops` on the same selection."""

from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from benchmarks.loops import finetune
from benchmarks.passages import TrigramEmbedder, build_store
from benchmarks.timing import Call
from hullft_ops.ttft import (
    Embedder,
    TestTimeFinetuner,
    load_embedder,
    tiny_lm_path,
)
from hullft_ops.ttft.models.weights import rate_scales, trained_parameters

LR = 2.5e-4
# Between the ends of two adaptations, as a share of the change. Adam follows the sign of even the
# smallest gradients. A sum in another order may lose that sign, and bfloat16 loses it far more
# often. CUDA adds up in more orders: its attention in another one each time.
_ALLOWED = {
    ("cpu", None): 2e-4,
    ("cpu", "bfloat16"): 0.1,
    ("cuda", None): 1e-3,
    ("cuda", "bfloat16"): 0.2,
}


@dataclass(frozen=True)
class Case:
    """``model``: "tiny"; "gpt2", GPT-2's architecture; or "gpt2-small", which proves nothing."""

    model: str
    n_select: int = 20
    refresh: int = 2
    lengths: str = "300"
    texts: int = 240
    dtype: str | None = None

    def __str__(self) -> str:
        name = f"{self.model}-{self.lengths}-N{self.n_select}-r{self.refresh}"
        return name if self.dtype is None else f"{name}-{self.dtype}"

    def allowed_difference(self, device: torch.device) -> float:
        """Between the ends of two adaptations, as a share of the change."""
        return _ALLOWED[device.type, self.dtype]


SMALL = Case("gpt2-small", 4, lengths="short", texts=12)


def cases(smoke: bool) -> list[Case]:
    if smoke:
        return [SMALL]
    return [Case("tiny"), Case("gpt2"), Case("gpt2", dtype="bfloat16")]


def embedder_of(device: torch.device) -> Embedder:
    """The usual one on the CPU. A machine with a GPU may lack its weights."""
    return load_embedder() if device.type == "cpu" else TrigramEmbedder()


class Adapting:
    """One case. ``options`` are further fields of `hullft_ops.ttft.TTFTConfig`."""

    def __init__(
        self, case: Case, device: torch.device, embedder: Embedder, **options: Any
    ) -> None:
        self.model, tokenizer = _model(case.model, device)
        store, self.prompt = build_store(tokenizer, embedder, case.lengths, case.texts)
        options = {
            "n_select": case.n_select,
            "refresh": case.refresh,
            "order": "grouped",  # as the plain loops
            "lr": LR,
            "dtype": case.dtype,
            "context": 0,
            "ngrams": 0,
            "train_on_prompt": 0,
            **options,
        }
        self.finetuner = TestTimeFinetuner(
            self.model, tokenizer, store, embedder, **options
        )
        # The loops train what we train, at the same rates.
        trained = list(trained_parameters(self.model).values())
        scales = rate_scales(self.model, trained)
        self.groups: list[dict[str, Any]] = [
            {"params": [parameter], "lr": LR * scale}
            for parameter, scale in zip(trained, scales, strict=True)
        ]
        self.model.requires_grad_(False)
        for parameter in trained:
            parameter.requires_grad_(True)
        self.support = self.finetuner.select(self.prompt)
        self._case = case
        self._base = copies(self.model)

    def adapt(self) -> None:
        with self.finetuner.adapted(self.prompt):
            pass

    def end(self) -> list[torch.Tensor]:
        """Copies of the parameters that an adaptation ends with."""
        with self.finetuner.adapted(self.prompt):
            return copies(self.model)

    def difference(self) -> float:
        """How far the loops end from ours, the larger one, as a share of the change."""
        ours = self.end()
        differences = []
        for loop in self.loops().values():
            loop()
            differences.append(self.apart(ours, copies(self.model)))
            self._restore()
        return max(differences)

    def apart(self, ends: list[torch.Tensor], others: list[torch.Tensor]) -> float:
        """How far two adaptations end from each other, as a share of the change."""
        off, change = [], []
        names = [name for name, _ in self.model.named_parameters()]
        for name, end, other, start in zip(
            names, ends, others, self._base, strict=True
        ):
            # A softmax does not change if all of its arguments grow by the same number. So the
            # gradient of GPT-2's key biases is only rounding, and Adam turns it into steps.
            if not name.endswith("attn.c_attn.bias"):
                off.append((end - other).double().norm())
                change.append((other - start).double().norm())
        return float(torch.stack(off).norm() / torch.stack(change).norm())

    def loops(self) -> dict[str, Call]:
        loop = partial(
            finetune,
            self.model,
            self.support.input_ids,
            self.support.counts,
            refresh=self._case.refresh,
            groups=self.groups,
        )
        autocast = None if self._case.dtype is None else torch.bfloat16
        positions = self.model.config.max_position_embeddings
        return {
            "padded loop": partial(loop, padded_to=positions),
            "torch loop": partial(loop, autocast=autocast),
        }

    def restoring(self, loop: Call) -> Call:
        def loop_and_restore() -> None:
            loop()
            self._restore()

        return loop_and_restore

    def _restore(self) -> None:
        self.model.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_copy_(list(self.model.parameters()), self._base)


@lru_cache(maxsize=1)
def _model(
    name: str, device: torch.device
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model of a case on the device. GPT-2 has random weights and the tiny model's tokenizer,
    whose ids fit into its vocabulary."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_lm_path(), trust_remote_code=False)
    model: PreTrainedModel
    torch.manual_seed(0)
    if name == "tiny":
        model = AutoModelForCausalLM.from_pretrained(
            tiny_lm_path(), dtype=torch.float32, trust_remote_code=False
        )
    elif name == "gpt2":
        model = GPT2LMHeadModel(GPT2Config())
    else:
        config = GPT2Config(
            vocab_size=4096,
            n_positions=128,
            n_embd=64,
            n_layer=2,
            n_head=2,
            bos_token_id=0,
            eos_token_id=0,
        )
        model = GPT2LMHeadModel(config)
    # Ours trains without dropout, so the loops do too.
    nn.Module.to(model, device)
    return model.train(False), tokenizer


def copies(model: PreTrainedModel) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]
