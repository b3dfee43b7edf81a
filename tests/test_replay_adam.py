"""ReplayAdam trains as a torch.optim.Optimizer does."""

import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from adam_training import (
    assert_close,
    assert_same_bits,
    backward,
    grouped,
    make_model,
    train,
)
from hullft_ops.gradient_cache import GradientCache
from hullft_ops.replay import ReplayAdam


@pytest.mark.parametrize("repeats", [1, 4])
def test_trains_as_adam_with_groups(repeats: int) -> None:
    ours, theirs = make_model(), make_model()
    train(ours, grouped(ours, ReplayAdam), range(10), repeats)
    train(theirs, grouped(theirs, torch.optim.Adam), range(10), repeats)
    assert_close(ours, theirs)


def test_trains_as_adamw() -> None:
    ours, theirs = make_model(), make_model()
    optimizer = ReplayAdam(
        ours.parameters(), lr=1e-2, weight_decay=0.1, decoupled_weight_decay=True
    )
    train(ours, optimizer, range(10), 3)
    peer = torch.optim.AdamW(theirs.parameters(), lr=1e-2, weight_decay=0.1)
    train(theirs, peer, range(10), 3)
    assert_close(ours, theirs)


def test_defaults_are_those_of_adam() -> None:
    params = [torch.zeros(3, requires_grad=True)]
    assert ReplayAdam(params).defaults == torch.optim.Adam(params).defaults


def test_options_of_torch_that_ask_for_nothing_else() -> None:
    ours, theirs = make_model(), make_model()
    options = {"foreach": False, "fused": True, "differentiable": False}
    optimizer = ReplayAdam(
        ours.parameters(), 1e-2, (0.8, 0.9), 1e-7, 0.1, False, **options
    )
    peer = torch.optim.Adam(
        theirs.parameters(), 1e-2, (0.8, 0.9), 1e-7, 0.1, False, **options
    )
    assert optimizer.defaults == peer.defaults
    train(ours, optimizer, range(5), 2)
    train(theirs, peer, range(5), 2)
    assert_close(ours, theirs)
    peer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    optimizer.load_state_dict(copy.deepcopy(peer.state_dict()))


def test_decoupled_weight_decay_by_group() -> None:
    ours, theirs = make_model(), make_model()
    for model, optimizer in ((ours, ReplayAdam), (theirs, torch.optim.Adam)):
        groups = [
            {"params": model[0].parameters(), "decoupled_weight_decay": True},
            {"params": model[2].parameters()},
        ]
        train(model, optimizer(groups, lr=1e-2, weight_decay=0.2), range(5), 2)
    assert_close(ours, theirs)


def test_named_parameters() -> None:
    model = make_model()
    optimizer = ReplayAdam(model.named_parameters())
    train(model, optimizer, range(2), 2)
    assert optimizer.param_groups[0]["param_names"] == [
        "0.weight",
        "0.bias",
        "2.weight",
    ]


@pytest.mark.parametrize(
    "schedule",
    [
        lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(
            optimizer, 1e-2, total_steps=12
        ),
        lambda optimizer: torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: 0.9**step
        ),
    ],
    ids=["OneCycleLR, momentum too", "LambdaLR"],
)
def test_schedulers(schedule: Callable) -> None:
    ours, theirs = make_model(), make_model()
    for model, optimizer_class in ((ours, ReplayAdam), (theirs, torch.optim.Adam)):
        optimizer = optimizer_class(model.parameters(), lr=1e-2)
        scheduler = schedule(optimizer)
        for seed in range(10):
            train(model, optimizer, range(seed, seed + 1), 2)
            scheduler.step()
    assert_close(ours, theirs)


def test_add_param_group() -> None:
    ours, theirs = make_model(), make_model()
    for model, optimizer_class in ((ours, ReplayAdam), (theirs, torch.optim.Adam)):
        optimizer = optimizer_class(model[0].parameters(), lr=1e-2)
        train(model, optimizer, range(3), 2)
        optimizer.add_param_group({"params": model[2].parameters(), "lr": 1e-3})
        train(model, optimizer, range(3, 6), 2)
    assert_close(ours, theirs)


def test_lr_as_a_tensor_is_read_at_every_step() -> None:
    ours, theirs = make_model(), make_model()
    lr = torch.tensor(1e-2, dtype=torch.float64)
    optimizer, peer = (
        ReplayAdam(ours.parameters(), lr=lr),
        torch.optim.Adam(theirs.parameters()),
    )
    for seed in range(4):
        peer.param_groups[0]["lr"] = float(lr)
        train(ours, optimizer, range(seed, seed + 1), 2)
        train(theirs, peer, range(seed, seed + 1), 2)
        lr *= 0.5
    assert_close(ours, theirs)


def test_closure_runs_once_with_gradients() -> None:
    ours, theirs = make_model(), make_model()
    optimizer, calls = ReplayAdam(ours.parameters(), lr=1e-2), []

    def closure() -> torch.Tensor:
        assert torch.is_grad_enabled()
        calls.append(1)
        backward(ours, 0)
        return ours[0].weight.sum()

    wanted = ours[0].weight.sum().item()
    loss = optimizer.step(closure, repeats=3)
    assert loss.item() == wanted
    assert len(calls) == 1
    train(theirs, torch.optim.Adam(theirs.parameters(), lr=1e-2), range(1), 3)
    assert_close(ours, theirs)


def test_step_hooks() -> None:
    model = make_model()
    optimizer, seen = ReplayAdam(model.parameters()), []
    optimizer.register_step_pre_hook(
        lambda opt, args, kwargs: seen.append(("pre", kwargs))
    )
    optimizer.register_step_post_hook(
        lambda opt, args, kwargs: seen.append(("post", kwargs))
    )
    train(model, optimizer, range(1), 2)
    assert seen == [("pre", {"repeats": 2}), ("post", {"repeats": 2})]


def test_parameters_without_gradient_are_left_alone() -> None:
    model = make_model()
    optimizer = ReplayAdam(model.parameters(), weight_decay=0.1)
    backward(model, 0)
    model[0].bias.grad = None
    before = model[0].bias.detach().clone()
    optimizer.step()
    assert torch.equal(model[0].bias, before)
    assert model[0].bias not in optimizer.state
    assert model[0].weight in optimizer.state


def test_no_gradient_at_all() -> None:
    assert ReplayAdam(make_model().parameters()).step(repeats=2) is None


def test_steps_with_given_gradients() -> None:
    ours, theirs = make_model(), make_model()
    backward(ours, 0)
    backward(theirs, 0)
    gradient = ours[0].weight.grad.float()
    ReplayAdam(ours.parameters()).step(repeats=2, grads={ours[0].weight: gradient})
    theirs[0].bias.grad = theirs[2].weight.grad = None
    theirs[0].weight.grad = gradient.double()
    ReplayAdam(theirs.parameters()).step(repeats=2)
    assert_same_bits(ours, theirs)


def test_grad_scaler_skips_a_step_that_overflowed() -> None:
    model = make_model(torch.float32)
    optimizer = ReplayAdam(model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    before = copy.deepcopy(model)
    scaler.scale(model(torch.ones(1, 6)).sum()).backward()
    model[0].bias.grad[0] = math.inf
    scaler.step(optimizer, repeats=2)
    scaler.update()
    assert_same_bits(model, before)


def test_repeats_of_a_group() -> None:
    ours, theirs = make_model(), make_model()
    optimizer = grouped(ours, ReplayAdam)
    optimizer.param_groups[0]["repeats"] = np.int64(3)
    twin = grouped(theirs, ReplayAdam)
    for seed in range(3):
        backward(ours, seed)
        optimizer.step()
        backward(theirs, seed)
        grads = {param: param.grad for param in theirs.parameters()}
        twin.step(grads={theirs[2].weight: grads.pop(theirs[2].weight)})
        twin.step(repeats=3, grads=grads)
    assert_same_bits(ours, theirs)
    backward(ours, 5)
    optimizer.step(repeats=2)  # of all groups
    assert [float(state["step"]) for state in optimizer.state.values()] == [11, 11, 5]
    cache = GradientCache(ours.parameters())
    cache.accumulate("a")
    cache.replay("a", optimizer)
    assert [float(state["step"]) for state in optimizer.state.values()] == [14, 14, 6]


def test_repeats_of_a_group_with_a_scaler_and_a_schedule() -> None:
    ours, theirs = make_model(torch.float32), make_model(torch.float32)
    optimizer, twin = (
        ReplayAdam(model.parameters(), lr=1e-2) for model in (ours, theirs)
    )
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    optimizer.param_groups[0]["repeats"] = 2
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
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
    scaler.scale(ours(x).square().sum()).backward()
    ours[0].bias.grad[0] = math.inf
    scaler.step(optimizer)  # skipped as a whole
    assert {float(state["step"]) for state in optimizer.state.values()} == {6}


def test_backward_through_a_stale_graph_is_an_error() -> None:
    param = torch.ones(3, requires_grad=True)
    loss = param.square().sum()
    param.grad = torch.ones(3)
    ReplayAdam([param]).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
