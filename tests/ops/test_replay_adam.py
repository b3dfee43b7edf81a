"""ReplayAdam and its operator against torch's Adam and AdamW, and the definition in float64."""

import copy
import io
import itertools
import math
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from adam_problems import (
    OPS,
    OPTIONS,
    AdamTensors,
    adam_replay,
    assert_near_reference,
    assert_same_bits,
    make_tensors,
)
from adam_training import (
    Model,
    OptimizerClass,
    assert_models_close,
    assert_same_models,
    backward,
    grouped,
    make_model,
    train,
)
from hullft_ops import GradientCache, ReplayAdam, ReplayAdamW
from problems import DTYPES

REPEATS = [1, 2, 7, 64]
DECAYS = {
    "Adam": {},
    "Adam coupled": {"weight_decay": 0.1},
    "AdamW": {"weight_decay": 0.1, "decoupled": True},
    "maximize": {"weight_decay": 0.1, "maximize": True},
}
# 1003 elements: whole vectors of every width and a tail.
SIZES = [1003, 0, 17, 1]


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("repeats", REPEATS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_the_reference(
    simd_level: str, dtype: torch.dtype, repeats: int, decay: str
) -> None:
    """Each tensor has its own step count, of either dtype."""
    for steps_done in (0.0, 1000.0):
        tensors = make_tensors(SIZES, dtype, steps_done=steps_done, seed=repeats)
        tensors.steps[2:] = [torch.tensor(5.0), torch.tensor(7.0, dtype=torch.float64)]
        assert_near_reference(tensors, repeats, **DECAYS[decay])


def test_any_number_of_tensors() -> None:
    """Sizes from 0, first and last empty, one large enough for several threads."""
    sizes = [(7 * i) % 61 if i % 5 else 0 for i in range(301)]
    sizes[150] = 40_000
    assert_near_reference(make_tensors(sizes, torch.float32, steps_done=1000.0), 3)


def test_many_repeats() -> None:
    """Past some 360 steps with these betas the corrections are exactly 1 and stay so."""
    assert_near_reference(make_tensors([5], torch.float64), 10_000, beta2=0.9)


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_rate_for_each_tensor(
    simd_level: str, dtype: torch.dtype, decay: str
) -> None:
    """As if each stood in a call of its own. Two in a row have one schedule."""
    scales = [0.5, 3.0, 0.0, 0.0, 0.5]
    tensors = make_tensors([1003, 0, 17, 4, 5], dtype, steps_done=7.0)
    rates = torch.tensor(scales, dtype=torch.float64)
    options = DECAYS[decay] | {"lr_scales": rates}
    together = adam_replay(tensors, 3, **options)

    for i, scale in enumerate(scales):
        alone = AdamTensors(*[column[i : i + 1] for column in tensors])
        rate = DECAYS[decay] | {"lr": scale * OPTIONS["lr"]}
        expected = adam_replay(alone, 3, **rate)

        assert torch.equal(together.params[i], expected.params[0])
        assert torch.equal(together.exp_avgs[i], expected.exp_avgs[0])

    options |= {
        "lr": 0.0,
        "lr_tensor": torch.tensor(OPTIONS["lr"], dtype=torch.float64),
    }
    assert_same_bits(adam_replay(tensors, 3, **options), together)


@pytest.mark.parametrize("grad_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(simd_level: str, dtype: torch.dtype, grad_dtype: torch.dtype) -> None:
    """Gradients are rounded to the arithmetic's dtype first."""
    tensors = make_tensors(SIZES, dtype, grad_dtype=grad_dtype, steps_done=10.0)
    arithmetic = torch.float64 if dtype == torch.float64 else torch.float32
    rounded = tensors._replace(grads=[grad.to(arithmetic) for grad in tensors.grads])
    after = assert_near_reference(rounded, 4, weight_decay=0.1)

    assert_same_bits(adam_replay(tensors, 4, weight_decay=0.1), after)


def test_dtypes_may_be_mixed_in_a_call() -> None:
    mixed = AdamTensors([], [], [], [], [])
    alone = []

    for dtype in DTYPES:
        tensors = make_tensors([130], dtype, grad_dtype=torch.float32)
        alone.append(adam_replay(tensors, 3))
        for column, tensor in zip(mixed, tensors, strict=True):
            column.extend(tensor)

    together = adam_replay(mixed, 3)
    for value, expected in zip(together.params, alone, strict=True):
        assert torch.equal(value, expected.params[0])


def test_strided_parameters_that_require_grad_in_grad_mode() -> None:
    """Memory between their elements is not touched."""
    tensors = make_tensors([(6, 4)])
    expected = adam_replay(tensors, 2).params[0]

    wide = torch.full((6, 9), 7.0)
    leaf = wide[:, 2:6].detach().copy_(tensors.params[0]).requires_grad_()
    OPS.adam_replay_(*tensors._replace(params=[leaf]), repeats=2, **OPTIONS)

    assert leaf.is_leaf
    assert torch.equal(leaf.detach(), expected)
    assert (wide[:, [0, 1, 6, 7, 8]] == 7).all()


def test_what_is_not_finite_stays_where_it_is(simd_level: str) -> None:
    tensors = make_tensors([50])
    tensors.grads[0][[3, 20, 49]] = torch.tensor([math.nan, math.inf, -math.inf])
    after = assert_near_reference(tensors, 3)

    assert after.params[0].isfinite().sum() == 47


def test_gradients_may_share_memory_with_each_other() -> None:
    tensors = make_tensors([(5, 7), (5, 7)])
    shared = torch.tensor(0.5).expand(5, 7)
    dense = tensors._replace(grads=[torch.full((5, 7), 0.5) for _ in range(2)])
    expected = adam_replay(dense, 2)
    tensors = tensors._replace(grads=[shared, shared])
    OPS.adam_replay_(*tensors, repeats=2, **OPTIONS)

    assert_same_bits(tensors, expected)


SCALES = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        (torch.float32, {"repeats": 2, "lr_scales": SCALES, "weight_decay": 0.1}),
        (torch.float32, {"repeats": 1, "repeats_tensor": torch.tensor(3)}),
        (torch.bfloat16, {"repeats": 2, "seed": 3, "lr_tensor": torch.tensor(1e-3)}),
    ],
)
def test_opcheck(dtype: torch.dtype, options: dict[str, object]) -> None:
    tensors = make_tensors([(3, 4), 0, 5], dtype, grad_dtype=torch.bfloat16)
    options = {**OPTIONS, **options}
    torch.library.opcheck(OPS.adam_replay_.default, tuple(tensors), options)


Optimizer = torch.optim.Optimizer
Adam = torch.optim.Adam
POSITIONAL = (1e-2, (0.8, 0.9), 1e-7, 0.1)


def plain(model: Model, kind: OptimizerClass, **options: object) -> Optimizer:
    return kind(model.parameters(), *POSITIONAL, **options)


def decoupled_by_group(model: Model, kind: OptimizerClass) -> Optimizer:
    groups = [
        {"params": model[0].parameters(), "decoupled_weight_decay": True},
        {"params": model[2].parameters()},
    ]
    return kind(groups, lr=1e-2, weight_decay=0.2)


def one_cycle(optimizer: Optimizer) -> Any:
    """It changes the momentum too."""
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=12)


def exponential(optimizer: Optimizer) -> Any:
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)


# How an optimizer is made, and the schedule of its rates.
TRAININGS: dict[str, tuple[Callable[..., Optimizer], Callable | None]] = {
    "plain": (plain, None),
    "fused": (partial(plain, fused=True, foreach=False), None),
    "groups": (grouped, None),
    "decoupled": (decoupled_by_group, None),
    "one cycle": (plain, one_cycle),
}


@pytest.mark.parametrize("repeats", [1, 4])
@pytest.mark.parametrize(
    ("training", "ours", "theirs"),
    [
        *((name, ReplayAdam, Adam) for name in TRAININGS),
        ("plain", ReplayAdamW, torch.optim.AdamW),
    ],
)
def test_trains_as_torch(
    training: str, ours: OptimizerClass, theirs: OptimizerClass, repeats: int
) -> None:
    make, schedule = TRAININGS[training]
    models = [make_model(), make_model()]
    for model, kind in zip(models, (ours, theirs), strict=True):
        optimizer = make(model, kind)
        scheduler = schedule(optimizer) if schedule else None

        for seed in range(10):
            train(model, optimizer, range(seed, seed + 1), repeats)
            if scheduler:
                scheduler.step()

    assert_models_close(*models)


def test_defaults_are_those_of_torch() -> None:
    params = [torch.zeros(3, requires_grad=True)]

    assert ReplayAdam(params).defaults == Adam(params).defaults
    assert ReplayAdamW(params).defaults == torch.optim.AdamW(params).defaults


def test_lr_as_a_tensor_is_read_at_every_step() -> None:
    ours, theirs = make_model(), make_model()
    lr = torch.tensor(1e-2, dtype=torch.float64)
    optimizer = ReplayAdam(ours.parameters(), lr=lr)
    peer = Adam(theirs.parameters())

    for seed in range(4):
        peer.param_groups[0]["lr"] = float(lr)
        train(ours, optimizer, range(seed, seed + 1), 2)
        train(theirs, peer, range(seed, seed + 1), 2)
        lr *= 0.5

    assert_models_close(ours, theirs)


@pytest.mark.parametrize("is_compiled", [False, True])
def test_lr_scales_of_a_group(is_compiled: bool) -> None:
    """As a group for each parameter. One has no gradient once, and one rate changes."""
    ours, theirs = make_model(), make_model()
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

    assert_same_models(ours, theirs)


def test_a_compiled_step_follows_a_schedule_in_two_graphs() -> None:
    """One makes the state."""
    models = [make_model(), make_model()]
    backend = CompileCounterWithBackend("aot_eager")
    for model, is_compiled in zip(models, (False, True), strict=True):
        optimizer = ReplayAdam(model.parameters(), lr=1e-2)
        scheduler = exponential(optimizer)
        step = partial(optimizer.step, repeats=2)
        if is_compiled:
            step = torch.compile(step, backend=backend)

        for seed in range(12):
            backward(model, seed)
            step()
            scheduler.step()

    assert_same_models(*models)

    assert backend.frame_count == 2


def test_closure_runs_once_with_gradients() -> None:
    ours, theirs = make_model(), make_model()
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

    train(theirs, Adam(theirs.parameters(), lr=1e-2), range(1), 3)
    assert_models_close(ours, theirs)


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


def step_counts(optimizer: ReplayAdam) -> list[float]:
    return [state["step"].item() for state in optimizer.state.values()]


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
        last = theirs[2].weight
        twin.step(grads={last: grads.pop(last)})
        twin.step(repeats=3, grads=grads)

    assert_same_models(ours, theirs)

    backward(ours, 5)
    optimizer.step(repeats=torch.tensor(2))  # of all groups

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
    assert_same_models(ours, theirs)

    optimizer.step()

    assert step_counts(optimizer) == [1] * len(optimizer.param_groups[0]["params"])


def test_a_scaler_skips_a_step_that_overflowed() -> None:
    """And calls step() without arguments: repeats are a group's option."""
    ours, theirs = make_model(torch.float32), make_model(torch.float32)
    optimizer = ReplayAdam(ours.parameters(), lr=1e-2, repeats=2)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    backward(theirs, 0)
    ReplayAdam(theirs.parameters(), lr=1e-2).step(repeats=2)

    for overflow in (0.0, math.inf):
        x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
        scaler.scale(ours(x).square().sum()).backward()
        ours[0].bias.grad[0] += overflow
        scaler.step(optimizer)
        scaler.update()

    torch.testing.assert_close(list(ours.parameters()), list(theirs.parameters()))
    assert step_counts(optimizer) == [2, 2, 2]


OURS = partial(ReplayAdam, lr=1e-2, weight_decay=0.1)
OURS_DECOUPLED = partial(OURS, decoupled_weight_decay=True)
PEERS = [
    (partial(Adam, lr=1e-2, weight_decay=0.1), OURS),
    (partial(Adam, lr=1e-2, weight_decay=0.1, fused=True), OURS),
    (partial(Adam, lr=1e-2, weight_decay=0.1, foreach=True), OURS),
    (partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.1), OURS_DECOUPLED),
]


@pytest.mark.parametrize(
    ("first", "second"), [*PEERS, *(pair[::-1] for pair in PEERS), (OURS, OURS)]
)
def test_a_state_goes_on_in_another_optimizer(
    first: OptimizerClass, second: OptimizerClass
) -> None:
    """Half of the steps with one, the rest with the other; the state's options count."""
    model = make_model()
    before = first(model.parameters())
    train(model, before, range(5), 2)

    twin = copy.deepcopy(model)
    after = second(twin.parameters(), lr=0.5)
    file = io.BytesIO()
    torch.save(before.state_dict(), file)
    file.seek(0)
    after.load_state_dict(torch.load(file, weights_only=True))

    for trained, optimizer in ((model, before), (twin, after)):
        train(trained, optimizer, range(5, 10), 2)

    assert_models_close(model, twin)


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))]
)
def test_copies_go_on_alike(duplicate: Callable) -> None:
    model = make_model()
    optimizer = ReplayAdam(model.parameters(), lr=1e-2)
    train(model, optimizer, range(3), 2)
    twin_model, twin = duplicate((model, optimizer))
    train(model, optimizer, range(3, 6), 2)
    train(twin_model, twin, range(3, 6), 2)

    assert_same_models(model, twin_model)


def test_options_of_our_own_go_with_the_state() -> None:
    """Also through torch's Adam, which keeps them; without, the optimizer's own hold."""
    optimizer = ReplayAdam(make_model().parameters(), repeats=2, rounding_seed=9)
    peer = Adam(make_model().parameters(), lr=0.5)
    peer.load_state_dict(optimizer.state_dict())
    after = ReplayAdam(make_model().parameters(), rounding_seed=7)
    after.load_state_dict(peer.state_dict())

    assert after.param_groups[0]["repeats"] == 2
    assert after.param_groups[0]["rounding_seed"] == 9

    after.load_state_dict(Adam(make_model().parameters(), lr=0.5).state_dict())

    assert "repeats" not in after.param_groups[0]
    assert after.param_groups[0]["rounding_seed"] == 7
    assert after.param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize(
    ("foreign", "message"),
    [
        (partial(Adam, amsgrad=True), "amsgrad must be False"),
        (partial(Adam, differentiable=True), "differentiable must be False"),
        (torch.optim.SGD, ".* must have 'betas', got"),
    ],
)
def test_states_that_cannot_be_continued(foreign: OptimizerClass, message: str) -> None:
    model = make_model()
    optimizer = ReplayAdam(model.parameters(), lr=1e-2)
    train(model, optimizer, range(2), 2)
    before = copy.deepcopy(optimizer.state_dict())

    with pytest.raises(ValueError, match=f"^ReplayAdam: {message}"):
        optimizer.load_state_dict(foreign(make_model().parameters()).state_dict())

    assert optimizer.state_dict()["param_groups"] == before["param_groups"]
    assert len(optimizer.state_dict()["state"]) == 3


def pointers(optimizer: ReplayAdam) -> list[int]:
    states = optimizer.state.values()
    return [tensor.data_ptr() for state in states for tensor in state.values()]


def test_state_made_ahead_or_reset_is_that_of_a_new_optimizer() -> None:
    """In the same buffers, whatever they hold."""
    model = make_model(torch.float32)
    optimizer = ReplayAdam(model.parameters(), lr=1e-2)
    optimizer.reset()

    assert not optimizer.state

    optimizer.make_state()
    buffers = pointers(optimizer)

    assert len(optimizer.state) == len(list(model.parameters()))

    for prepare in (optimizer.make_state, optimizer.reset):
        prepare()
        twin = copy.deepcopy(model)
        train(model, optimizer, range(3), 2)
        train(twin, ReplayAdam(twin.parameters(), lr=1e-2), range(3), 2)

        assert_same_models(model, twin)

        for state in optimizer.state.values():
            state["exp_avg"].fill_(math.nan)

    optimizer.make_state()

    assert optimizer.state[model[0].weight]["exp_avg"].isnan().all()
    assert pointers(optimizer) == buffers


@pytest.mark.parametrize("complete", [0, 1, 2])
def test_a_step_cut_short_while_it_makes_its_state_takes_nothing_away_from_the_next(
    complete: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model()
    optimizer = ReplayAdam(model.parameters())
    zeros_like = torch.zeros_like
    calls = itertools.count()

    def interrupted(*args: Any, **kwargs: Any) -> torch.Tensor:
        if next(calls) == complete:
            raise KeyboardInterrupt

        return zeros_like(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "zeros_like", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(model, optimizer, range(1), 1)

    twin = make_model()
    train(model, optimizer, range(3), 2)
    train(twin, ReplayAdam(twin.parameters()), range(3), 2)

    assert_same_models(model, twin)


def test_options_that_numpy_made() -> None:
    """A schedule in NumPy's arithmetic gives rates that are no floats, and states with them."""
    theirs = torch.ones(3, requires_grad=True)
    ours = torch.ones(3, requires_grad=True)
    before = Adam([theirs], lr=np.float32(0.25))
    after = ReplayAdam([ours], lr=np.float32(0.5), eps=np.float64(1e-8))
    after.load_state_dict(copy.deepcopy(before.state_dict()))

    for param, optimizer in ((theirs, before), (ours, after)):
        param.grad = torch.ones(3)
        optimizer.step()

    torch.testing.assert_close(ours, theirs)
