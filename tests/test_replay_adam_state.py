"""The state of ReplayAdam: dictionaries that torch takes and gives, copies, reset."""

import copy
import itertools
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from adam_training import (
    OptimizerClass,
    assert_close,
    assert_same_bits,
    backward,
    make_model,
    train,
)
from hullft_ops import _checks
from hullft_ops.replay import ReplayAdam

PEERS: dict[str, tuple[OptimizerClass, dict[str, object]]] = {
    "Adam": (torch.optim.Adam, {}),
    "Adam fused": (torch.optim.Adam, {"fused": True}),
    "Adam foreach": (torch.optim.Adam, {"foreach": True}),
    "AdamW": (torch.optim.AdamW, {}),
}


@pytest.mark.parametrize("peer", PEERS)
def test_state_dict_from_torch(peer: str) -> None:
    """Half way with torch, then on with ReplayAdam, as torch goes on."""
    theirs = make_model()
    optimizer_class, options = PEERS[peer]
    before = optimizer_class(theirs.parameters(), lr=1e-2, weight_decay=0.1, **options)
    train(theirs, before, range(5), 2)
    ours = copy.deepcopy(theirs)
    after = ReplayAdam(ours.parameters())
    after.load_state_dict(copy.deepcopy(before.state_dict()))
    train(theirs, before, range(5, 10), 2)
    train(ours, after, range(5, 10), 2)
    assert_close(ours, theirs)


def test_state_dict_from_torch_leaves_the_seed() -> None:
    theirs = torch.optim.Adam([torch.ones(3, requires_grad=True)], lr=0.5)
    ours = ReplayAdam([torch.ones(3, requires_grad=True)], rounding_seed=7)
    ours.load_state_dict(theirs.state_dict())
    assert ours.param_groups[0]["rounding_seed"] == 7
    assert ours.param_groups[0]["lr"] == 0.5


def test_a_state_of_an_older_adamw_stays_decoupled() -> None:
    """Before it was a kind of Adam it had no option for that."""
    ours = make_model()
    before = torch.optim.AdamW(make_model().parameters(), weight_decay=0.1)
    old = copy.deepcopy(before.state_dict())
    del old["param_groups"][0]["decoupled_weight_decay"]
    optimizer = ReplayAdam(
        ours.parameters(), weight_decay=0.1, decoupled_weight_decay=True
    )
    optimizer.load_state_dict(old)
    assert optimizer.param_groups[0]["decoupled_weight_decay"] is True


@pytest.mark.parametrize("peer", PEERS)
def test_state_dict_to_torch(peer: str) -> None:
    ours = make_model()
    optimizer_class, options = PEERS[peer]
    before = ReplayAdam(
        ours.parameters(),
        lr=1e-2,
        weight_decay=0.1,
        decoupled_weight_decay=peer == "AdamW",
    )
    train(ours, before, range(5), 2)
    theirs = copy.deepcopy(ours)
    after = optimizer_class(theirs.parameters(), **options)
    after.load_state_dict(copy.deepcopy(before.state_dict()))
    train(ours, before, range(5, 10), 2)
    train(theirs, after, range(5, 10), 2)
    assert_close(ours, theirs)


def test_repeats_of_a_group_go_with_its_state() -> None:
    """torch's Adam keeps the option, and takes a step at a time."""
    ours, theirs, twin = make_model(), make_model(), make_model()
    optimizer, peer, restored = (
        optimizer_class(model.parameters())
        for model, optimizer_class in (
            (ours, ReplayAdam),
            (theirs, torch.optim.Adam),
            (twin, ReplayAdam),
        )
    )
    peer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    optimizer.load_state_dict(copy.deepcopy(peer.state_dict()))
    optimizer.param_groups[0]["repeats"] = 2
    backward(ours, 0)
    optimizer.step()
    peer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    restored.load_state_dict(copy.deepcopy(peer.state_dict()))
    for model in (theirs, twin):
        model.load_state_dict(ours.state_dict())
    backward(ours, 0)
    optimizer.step()
    backward(twin, 0)
    restored.step()
    assert_same_bits(ours, twin)
    train(theirs, peer, range(1), 2)
    assert_close(ours, theirs)
    restored.load_state_dict(torch.optim.Adam(make_model().parameters()).state_dict())
    assert "repeats" not in restored.param_groups[0]


def test_state_dict_goes_through_a_file(tmp_path) -> None:
    model = make_model()
    optimizer = ReplayAdam(model.parameters(), lr=1e-2)
    train(model, optimizer, range(3), 2)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    twin = copy.deepcopy(model)
    restored = ReplayAdam(twin.parameters())
    restored.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    train(model, optimizer, range(3, 6), 2)
    train(twin, restored, range(3, 6), 2)
    assert_same_bits(model, twin)


def test_state_dict_with_numbers_for_step_counts() -> None:
    """As torch saved them before 1.12."""
    model = make_model()
    optimizer = ReplayAdam(model.parameters())
    train(model, optimizer, range(3), 2)
    state = copy.deepcopy(optimizer.state_dict())
    for of_param in state["state"].values():
        of_param["step"] = int(of_param["step"])
    state["param_groups"] = [
        {
            k: group[k]
            for k in ("params", "lr", "betas", "eps", "weight_decay", "amsgrad")
        }
        for group in state["param_groups"]
    ]
    twin = copy.deepcopy(model)
    restored = ReplayAdam(twin.parameters())
    restored.load_state_dict(state)
    train(model, optimizer, range(3, 6), 2)
    train(twin, restored, range(3, 6), 2)
    assert_same_bits(model, twin)


@pytest.mark.parametrize("option", ["amsgrad", "differentiable"])
def test_state_dicts_that_cannot_be_continued(option: str) -> None:
    model = make_model()
    optimizer = ReplayAdam(model.parameters(), lr=1e-2)
    train(model, optimizer, range(2), 2)
    before = copy.deepcopy(optimizer.state_dict())
    foreign = torch.optim.Adam(make_model().parameters(), **{option: True}).state_dict()
    with pytest.raises(
        ValueError, match=f"^ReplayAdam: {option} must be False, got True$"
    ):
        optimizer.load_state_dict(foreign)
    assert optimizer.state_dict()["param_groups"] == before["param_groups"]
    assert len(optimizer.state_dict()["state"]) == 3


def test_state_dict_of_another_optimizer() -> None:
    foreign = torch.optim.SGD(make_model().parameters(), lr=0.1).state_dict()
    with pytest.raises(
        ValueError, match=r"^ReplayAdam: a parameter group must have 'betas', got"
    ):
        ReplayAdam(make_model().parameters()).load_state_dict(foreign)


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
)
def test_copies_go_on_alike(duplicate: Callable) -> None:
    model = make_model()
    optimizer = ReplayAdam(model.parameters(), lr=1e-2)
    train(model, optimizer, range(3), 2)
    twin_model, twin = duplicate((model, optimizer))
    train(model, optimizer, range(3, 6), 2)
    train(twin_model, twin, range(3, 6), 2)
    assert_same_bits(model, twin_model)


def test_reset_equals_a_new_optimizer_and_keeps_its_buffers() -> None:
    model = make_model(torch.float32)
    optimizer = ReplayAdam(model.parameters(), lr=1e-2)
    train(model, optimizer, range(3), 2)
    buffers = [
        t.data_ptr() for state in optimizer.state.values() for t in state.values()
    ]
    optimizer.reset()
    twin = copy.deepcopy(model)
    train(model, optimizer, range(3, 6), 2)
    train(twin, ReplayAdam(twin.parameters(), lr=1e-2), range(3, 6), 2)
    assert_same_bits(model, twin)
    assert buffers == [
        t.data_ptr() for state in optimizer.state.values() for t in state.values()
    ]


class Operators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.names.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


def test_reset_is_one_operator_for_all_tensors_of_a_device() -> None:
    """On a GPU each would be a launch."""
    model = make_model(torch.float32)
    optimizer = ReplayAdam(model.parameters())
    optimizer.make_state()
    with Operators() as operators:
        optimizer.reset()
    assert operators.names == ["_foreach_zero_"]


def test_a_first_step_in_inference_mode() -> None:
    model = make_model(torch.float32)
    twin = copy.deepcopy(model)
    optimizer, other = ReplayAdam(model.parameters()), ReplayAdam(twin.parameters())
    for one in (model, twin):
        for param in one.parameters():
            param.grad = torch.ones_like(param)
    with torch.inference_mode():
        optimizer.step()
    other.step()
    assert_same_bits(model, twin)
    optimizer.reset()
    optimizer.load_state_dict(other.state_dict())
    optimizer.step()
    other.step()
    assert_same_bits(model, twin)


def test_state_made_ahead_is_that_of_the_first_step() -> None:
    model = make_model(torch.float32)
    optimizer = ReplayAdam(model.parameters(), lr=1e-2)
    optimizer.make_state()
    assert len(optimizer.state) == len(list(model.parameters()))
    made = [t.data_ptr() for state in optimizer.state.values() for t in state.values()]
    twin = copy.deepcopy(model)
    train(model, optimizer, range(3), 2)
    train(twin, ReplayAdam(twin.parameters(), lr=1e-2), range(3), 2)
    assert_same_bits(model, twin)
    before = copy.deepcopy(optimizer.state_dict()["state"])
    optimizer.make_state()
    after = optimizer.state_dict()["state"]
    assert all(
        torch.equal(before[i][name], after[i][name])
        for i in before
        for name in before[i]
    )
    assert made == [
        t.data_ptr() for state in optimizer.state.values() for t in state.values()
    ]


def test_reset_before_any_step() -> None:
    model = make_model()
    optimizer = ReplayAdam(model.parameters())
    optimizer.reset()
    assert not optimizer.state


def test_reset_forgets_what_is_not_finite() -> None:
    param = torch.zeros(3, requires_grad=True)
    optimizer = ReplayAdam([param])
    param.grad = torch.full((3,), math.nan)
    optimizer.step()
    optimizer.reset()
    with torch.no_grad():
        param.zero_()
    param.grad = torch.ones(3)
    optimizer.step()
    torch.testing.assert_close(param.detach(), torch.full((3,), -1e-3))


@pytest.mark.parametrize("made", [0, 1, 2])
def test_a_step_cut_short_while_it_makes_its_state_takes_nothing_away_from_the_next(
    made: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = make_model(), make_model()
    cut, whole = ReplayAdam(one.parameters()), ReplayAdam(other.parameters())
    zeros_like, calls = torch.zeros_like, itertools.count()

    def fail_after_some(*args: Any, **kwargs: Any) -> torch.Tensor:
        if next(calls) == made:
            raise KeyboardInterrupt
        return zeros_like(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "zeros_like", fail_after_some)
        with pytest.raises(KeyboardInterrupt):
            train(one, cut, range(1), 1)
    assert next(calls) == made + 1
    train(one, cut, range(3), 2)
    train(other, whole, range(3), 2)
    assert_same_bits(one, other)


def test_options_that_numpy_made() -> None:
    """A schedule in NumPy's arithmetic gives rates that are no floats, and states with them."""
    theirs, ours = (torch.ones(3, requires_grad=True) for _ in range(2))
    before = torch.optim.Adam([theirs], lr=np.float32(0.25))
    after = ReplayAdam([ours], lr=np.float32(0.5), eps=np.float64(1e-8))
    after.load_state_dict(copy.deepcopy(before.state_dict()))
    for param, optimizer in ((theirs, before), (ours, after)):
        param.grad = torch.ones(3)
        optimizer.step()
    torch.testing.assert_close(ours, theirs)


def test_step_counts_of_old_torch_stay_off_a_default_device() -> None:
    param = torch.ones(3, requires_grad=True)
    optimizer = ReplayAdam([param])
    optimizer.make_state()
    state = optimizer.state_dict()
    state["state"][0]["step"] = 4
    with torch.device("meta"):
        optimizer.load_state_dict(state)
    optimizer.step(grads={param: torch.ones(3)})
    assert optimizer.state[param]["step"].item() == 5


def many_parameters() -> tuple[list[torch.Tensor], ReplayAdam]:
    params = [torch.ones(2, requires_grad=True) for _ in range(148)]
    for param in params:
        param.grad = torch.ones(2)
    return params, ReplayAdam(params)


def test_a_step_checks_a_model_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """One by one, the parameters of a model would take the host longer than the sweep."""
    checked: list[int] = []
    monkeypatch.setattr(_checks, "check_gradient", lambda op, i, *_: checked.append(i))
    params, optimizer = many_parameters()
    optimizer.step(repeats=2)
    assert checked == []
    assert all(torch.equal(param, params[0]) for param in params)
    assert (params[0] < 1).all()
