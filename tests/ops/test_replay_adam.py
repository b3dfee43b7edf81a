"""ReplayAdam trains as a torch.optim.Optimizer does."""

import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from adam_training import (
    assert_close,
    assert_same_bits,
    backward,
    grouped,
    make_model,
    train,
)
from hullft_ops import GradientCache, ReplayAdam, ReplayAdamW

BOTH = [ReplayAdam, torch.optim.Adam]


@pytest.mark.parametrize("repeats", [1, 4])
def test_trains_as_adam_with_groups(repeats: int) -> None:
    ours = make_model()
    theirs = make_model()
    train(ours, grouped(ours, ReplayAdam), range(10), repeats)
    train(theirs, grouped(theirs, torch.optim.Adam), range(10), repeats)

    assert_close(ours, theirs)


def test_trains_as_adamw() -> None:
    ours = make_model()
    theirs = make_model()
    positional = (1e-2, (0.8, 0.9), 1e-7, 0.1)
    optimizer = ReplayAdamW(ours.parameters(), *positional)
    peer = torch.optim.AdamW(theirs.parameters(), *positional)
    train(ours, optimizer, range(10), 3)
    train(theirs, peer, range(10), 3)

    assert_close(ours, theirs)


def test_defaults_are_those_of_torch() -> None:
    params = [torch.zeros(3, requires_grad=True)]

    assert ReplayAdam(params).defaults == torch.optim.Adam(params).defaults
    assert ReplayAdamW(params).defaults == torch.optim.AdamW(params).defaults


def test_options_of_torch_that_ask_for_nothing_else() -> None:
    ours = make_model()
    theirs = make_model()
    positional = (1e-2, (0.8, 0.9), 1e-7, 0.1, False)
    options = {"foreach": False, "fused": True, "differentiable": False}
    optimizer = ReplayAdam(ours.parameters(), *positional, **options)
    peer = torch.optim.Adam(theirs.parameters(), *positional, **options)

    assert optimizer.defaults == peer.defaults

    train(ours, optimizer, range(5), 2)
    train(theirs, peer, range(5), 2)

    assert_close(ours, theirs)

    peer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    optimizer.load_state_dict(copy.deepcopy(peer.state_dict()))


def test_decoupled_weight_decay_by_group() -> None:
    models = [make_model(), make_model()]
    for model, optimizer_class in zip(models, BOTH, strict=True):
        groups = [
            {"params": model[0].parameters(), "decoupled_weight_decay": True},
            {"params": model[2].parameters()},
        ]
        optimizer = optimizer_class(groups, lr=1e-2, weight_decay=0.2)
        train(model, optimizer, range(5), 2)

    assert_close(*models)


def one_cycle(optimizer: torch.optim.Optimizer) -> object:
    """It changes the momentum too."""
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=12)


def exponential(optimizer: torch.optim.Optimizer) -> object:
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)


@pytest.mark.parametrize("schedule", [one_cycle, exponential])
def test_schedulers(schedule: Callable) -> None:
    models = [make_model(), make_model()]
    for model, optimizer_class in zip(models, BOTH, strict=True):
        optimizer = optimizer_class(model.parameters(), lr=1e-2)
        scheduler = schedule(optimizer)

        for seed in range(10):
            train(model, optimizer, range(seed, seed + 1), 2)
            scheduler.step()

    assert_close(*models)


def test_add_param_group() -> None:
    models = [make_model(), make_model()]
    for model, optimizer_class in zip(models, BOTH, strict=True):
        optimizer = optimizer_class(model[0].parameters(), lr=1e-2)
        train(model, optimizer, range(3), 2)
        optimizer.add_param_group({"params": model[2].parameters(), "lr": 1e-3})
        train(model, optimizer, range(3, 6), 2)

    assert_close(*models)


def test_lr_as_a_tensor_is_read_at_every_step() -> None:
    ours = make_model()
    theirs = make_model()
    lr = torch.tensor(1e-2, dtype=torch.float64)
    optimizer = ReplayAdam(ours.parameters(), lr=lr)
    peer = torch.optim.Adam(theirs.parameters())

    for seed in range(4):
        peer.param_groups[0]["lr"] = float(lr)
        train(ours, optimizer, range(seed, seed + 1), 2)
        train(theirs, peer, range(seed, seed + 1), 2)
        lr *= 0.5

    assert_close(ours, theirs)


@pytest.mark.parametrize("is_compiled", [False, True])
def test_lr_scales_of_a_group(is_compiled: bool) -> None:
    """As a group for each parameter. One has no gradient once, and one rate changes."""
    ours = make_model()
    theirs = make_model()
    scales = [0.5, 3.0, 2.0]
    group = {"params": ours.parameters(), "lr_scales": scales}
    optimizer = ReplayAdam([group], lr=1e-2)
    groups = [
        {"params": [parameter], "lr": 1e-2 * scale}
        for parameter, scale in zip(theirs.parameters(), scales, strict=True)
    ]
    twin = ReplayAdam(groups)

    step = optimizer.step
    if is_compiled:
        step = torch.compile(step, backend="aot_eager")

    for seed in range(4):
        for model in (ours, theirs):
            backward(model, seed)
            if seed == 2:
                model[0].bias.grad = None
        if seed == 3:
            scales[0] = 4.0
            twin.param_groups[0]["lr"] = 1e-2 * 4.0
        step(repeats=2)
        twin.step(repeats=2)

    assert_same_bits(ours, theirs)


def test_a_compiled_step_follows_a_schedule_in_two_graphs() -> None:
    """One makes the state."""
    models = [make_model(), make_model()]
    backend = CompileCounterWithBackend("aot_eager")
    for model, is_compiled in zip(models, (False, True), strict=True):
        optimizer = ReplayAdam(model.parameters(), lr=1e-2)
        scheduler = exponential(optimizer)

        def step(optimizer: ReplayAdam = optimizer) -> None:
            optimizer.step(repeats=2)

        if is_compiled:
            step = torch.compile(step, backend=backend)

        for seed in range(12):
            backward(model, seed)
            step()
            scheduler.step()

    assert_same_bits(*models)

    assert backend.frame_count == 2


def test_closure_runs_once_with_gradients() -> None:
    ours = make_model()
    theirs = make_model()
    optimizer = ReplayAdam(ours.parameters(), lr=1e-2)
    calls = []

    def closure() -> torch.Tensor:
        assert torch.is_grad_enabled()

        calls.append(1)
        backward(ours, 0)
        return ours[0].weight.sum()

    before = ours[0].weight.sum().item()
    loss = optimizer.step(closure, repeats=3)

    assert loss.item() == before
    assert len(calls) == 1

    train(theirs, torch.optim.Adam(theirs.parameters(), lr=1e-2), range(1), 3)
    assert_close(ours, theirs)


def test_parameters_without_gradient_are_left_alone() -> None:
    model = make_model()
    optimizer = ReplayAdam(model.parameters(), weight_decay=0.1)

    assert optimizer.step(repeats=2) is None  # no gradient at all

    backward(model, 0)
    model[0].bias.grad = None
    before = model[0].bias.detach().clone()
    optimizer.step()

    assert torch.equal(model[0].bias, before)
    assert model[0].bias not in optimizer.state
    assert model[0].weight in optimizer.state


def test_gradients_in_place_of_grad() -> None:
    ours = make_model()
    theirs = make_model()
    backward(ours, 0)
    gradient = ours[0].weight.grad.float()
    ReplayAdam(ours.parameters()).step(repeats=2, grads={ours[0].weight: gradient})
    theirs[0].weight.grad = gradient.double()
    ReplayAdam(theirs.parameters()).step(repeats=2)

    assert_same_bits(ours, theirs)


def step_counts(optimizer: ReplayAdam) -> list[float]:
    return [state["step"].item() for state in optimizer.state.values()]


def test_repeats_of_a_group() -> None:
    ours = make_model()
    theirs = make_model()
    optimizer = grouped(ours, ReplayAdam)
    optimizer.param_groups[0]["repeats"] = np.int64(3)
    twin = grouped(theirs, ReplayAdam)

    for seed in range(3):
        backward(ours, seed)
        optimizer.step()

        backward(theirs, seed)
        grads = {param: param.grad for param in theirs.parameters()}
        last = theirs[2].weight
        twin.step(grads={last: grads.pop(last)})
        twin.step(repeats=3, grads=grads)

    assert_same_bits(ours, theirs)

    backward(ours, 5)
    optimizer.step(repeats=2)  # of all groups

    assert step_counts(optimizer) == [11, 11, 5]

    cache = GradientCache(ours.parameters())
    cache.accumulate("a")
    cache.replay("a", optimizer)

    assert step_counts(optimizer) == [14, 14, 6]

    twice = ReplayAdam(ours.parameters(), repeats=2)
    twice.step()

    assert step_counts(twice) == [2, 2, 2]


def test_no_repeats_change_nothing() -> None:
    ours, theirs = make_model(), make_model()
    optimizer = grouped(ours, ReplayAdam)
    optimizer.param_groups[1]["repeats"] = 0
    backward(ours, 0)

    assert optimizer.step(lambda: 5.0, repeats=0) == 5.0
    assert not optimizer.state
    assert_same_bits(ours, theirs)

    optimizer.step()

    assert step_counts(optimizer) == [1] * len(optimizer.param_groups[0]["params"])


def test_repeats_in_a_tensor() -> None:
    ours = make_model()
    theirs = make_model()
    optimizer = grouped(ours, ReplayAdam)
    twin = grouped(theirs, ReplayAdam)
    repeats = torch.tensor(0)

    for seed in range(1, 4):
        backward(ours, seed)
        optimizer.step(repeats=repeats.fill_(seed))

        backward(theirs, seed)
        twin.step(repeats=seed)

    assert_same_bits(ours, theirs)


def test_repeats_of_a_group_with_a_scaler_and_a_schedule() -> None:
    ours = make_model(torch.float32)
    theirs = make_model(torch.float32)
    optimizer = ReplayAdam(ours.parameters(), lr=1e-2)
    optimizer.param_groups[0]["repeats"] = 2
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    twin = ReplayAdam(theirs.parameters())

    for seed, lr in enumerate((1e-2, 5e-3, 2.5e-3)):
        ours.zero_grad()
        x = torch.randn(5, 6, generator=torch.Generator().manual_seed(seed))
        scaler.scale(ours(x).square().sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        schedule.step()

        twin.param_groups[0]["lr"] = lr
        train(theirs, twin, range(seed, seed + 1), 2)

    torch.testing.assert_close(list(ours.parameters()), list(theirs.parameters()))

    # The scaler skips a step whose gradients overflowed, as a whole.
    before = copy.deepcopy(ours)
    scaler.scale(ours(x).square().sum()).backward()
    ours[0].bias.grad[0] = math.inf
    scaler.step(optimizer)

    assert step_counts(optimizer) == [6, 6, 6]

    assert_same_bits(ours, before)
