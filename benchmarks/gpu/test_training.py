"""Adapting GPT-2's architecture on the device, against plain torch.

The weights are random, the embedder counts trigrams: nothing is downloaded.
"""

from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from benchmarks import adapting
from benchmarks.passages import TrigramEmbedder
from hullft_ops import ReplayAdam
from hullft_ops.ttft import TestTimeFinetuner, score_text

# Of a gradient, relative to its norm: the rounding of one pass.
_GRADIENT_ERROR = {None: 1e-5, "bfloat16": 0.05}
# Between two adaptations, as a share of the change.
_REPETITION = {None: 0.01, "bfloat16": 0.2}
# An eps so large that a step of Adam is the gradient, times the rate / eps.
_EPS, _SCALE = 1e8, 2.0**10


def cases(smoke: bool) -> list[adapting.Case]:
    if smoke:
        return [adapting.SMALL, replace(adapting.SMALL, dtype="bfloat16")]
    return [adapting.Case("gpt2"), adapting.Case("gpt2", dtype="bfloat16")]


def adapter(
    case: adapting.Case, device: torch.device, **options: Any
) -> adapting.Adapting:
    return adapting.Adapting(case, device, TrigramEmbedder(), **options)


def test_the_gradient_of_a_pass_is_that_of_float64(
    case: adapting.Case, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    adam = partial(ReplayAdam, eps=_EPS)
    monkeypatch.setattr("hullft_ops.ttft.training.ReplayAdam", adam)
    one_step = replace(case, n_select=1, refresh=1)
    ours = adapter(one_step, device, lr=_SCALE * _EPS)
    start = adapting.copies(ours.model)
    end = ours.end()

    exact = deepcopy(ours.model).double()
    tokens = torch.tensor([ours.support.input_ids[0]], device=device)
    exact(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
    errors, norms = [], []
    shares = {group["params"][0]: group["lr"] / adapting.LR for group in ours.groups}
    parameters = zip(ours.model.parameters(), exact.parameters(), strict=True)
    for before, after, (own, parameter) in zip(start, end, parameters, strict=True):
        if own not in shares:
            assert torch.equal(before, after)
            continue
        assert parameter.grad is not None
        gradient = (before.double() - after.double()) / (_SCALE * shares[own])
        errors.append((gradient - parameter.grad).norm())
        norms.append(parameter.grad.norm())
    error = torch.stack(errors).norm() / torch.stack(norms).norm()
    print(f"relative error of the gradient: {error:.3g}")
    assert error <= _GRADIENT_ERROR[case.dtype]


def test_an_adaptation_ends_where_plain_loops_end(
    case: adapting.Case, device: torch.device
) -> None:
    difference = adapter(case, device).difference()
    print(f"difference, of the change: {difference:.3g}")
    assert difference <= case.allowed_difference(device)


def test_an_adaptation_ends_where_the_last_one_did(
    case: adapting.Case, device: torch.device
) -> None:
    """torch's attention may add up in another order each time, and then Adam goes another way."""
    ours = adapter(case, device)
    end, *others = (ours.end() for _ in range(3))
    difference = max(ours.apart(other, end) for other in others)
    print(f"difference, of the change: {difference:.3g}")
    assert difference <= _REPETITION[case.dtype]


def test_an_adaptation_scores_and_generates_and_leaves_the_model_as_it_was(
    case: adapting.Case, device: torch.device
) -> None:
    ours = adapter(case, device)
    tokenizer, prompt = ours.finetuner.tokenizer, ours.prompt
    start = adapting.copies(ours.model)
    before = score_text(ours.model, tokenizer, prompt)
    with ours.finetuner.adapted(prompt) as adaptation:
        adapted = adaptation.score(prompt, after="")
        answers = [adaptation.generate(prompt, max_new_tokens=8) for _ in range(2)]
    assert adapted.value < before.value
    assert answers[0] == answers[1]
    assert all(map(torch.equal, start, adapting.copies(ours.model)))
    assert score_text(ours.model, tokenizer, prompt) == before


def test_a_compiled_model_ends_where_the_model_does(device: torch.device) -> None:
    ours = adapter(adapting.SMALL, device)
    backend = "inductor" if device.type == "cuda" else "aot_eager"
    model: Any = torch.compile(ours.model, backend=backend)
    compiled = TestTimeFinetuner(
        model,
        ours.finetuner.tokenizer,
        ours.finetuner.store,
        TrigramEmbedder(),
        ours.finetuner.config,
    )
    with compiled.adapted(ours.prompt):
        end = adapting.copies(ours.model)
    allowed = adapting.SMALL.allowed_difference(device)
    assert ours.apart(end, ours.end()) <= allowed
