"""The state of ReplayAdam: dictionaries that torch takes and gives, copies, reset."""

import copy
import io
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
from hullft_ops import ReplayAdam

PEERS: dict[str, tuple[OptimizerClass, dict[str, object]]] = {
    "Adam": (torch.optim.Adam, {}),
    "Adam fused": (torch.optim.Adam, {"fused": True}),
    "Adam foreach": (torch.optim.Adam, {"foreach": True}),
    "AdamW": (torch.optim.AdamW, {}),
}


@pytest.mark.parametrize("peer", PEERS)
def test_state_dict_from_torch(peer: str) -> None:
    """Half way with torch, then on with ReplayAdam, as torch goes on."""
    optimizer_class, options = PEERS[peer]
    theirs = make_model()
    before = optimizer_class(theirs.parameters(), lr=1e-2, weight_decay=0.1, **options)
    train(theirs, before, range(5), 2)

    ours = copy.deepcopy(theirs)
    after = ReplayAdam(ours.parameters())
    after.load_state_dict(copy.deepcopy(before.state_dict()))
    train(theirs, before, range(5, 10), 2)
    train(ours, after, range(5, 10), 2)

    assert_close(ours, theirs)


@pytest.mark.parametrize("peer", PEERS)
def test_state_dict_to_torch(peer: str) -> None:
    optimizer_class, options = PEERS[peer]
    ours = make_model()
    decoupled = {"decoupled_weight_decay": peer == "AdamW"}
    before = ReplayAdam(ours.parameters(), lr=1e-2, weight_decay=0.1, **decoupled)
    train(ours, before, range(5), 2)

    theirs = copy.deepcopy(ours)
    after = optimizer_class(theirs.parameters(), **options)
    after.load_state_dict(copy.deepcopy(before.state_dict()))
    train(ours, before, range(5, 10), 2)
    train(theirs, after, range(5, 10), 2)

    assert_close(ours, theirs)


def test_state_dict_from_torch_leaves_the_seed() -> None:
    theirs = torch.optim.Adam([torch.ones(3, requires_grad=True)], lr=0.5)
    ours = ReplayAdam([torch.ones(3, requires_grad=True)], rounding_seed=7)
    ours.load_state_dict(theirs.state_dict())

    assert ours.param_groups[0]["rounding_seed"] == 7
    assert ours.param_groups[0]["lr"] == 0.5


def test_repeats_of_a_group_go_with_its_state() -> None:
    """Also through torch's Adam, which keeps the option."""
    ours = make_model()
    optimizer = ReplayAdam(ours.parameters())
    optimizer.param_groups[0]["repeats"] = 2
    backward(ours, 0)
    optimizer.step()

    peer = torch.optim.Adam(make_model().parameters())
    peer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    twin = copy.deepcopy(ours)
    restored = ReplayAdam(twin.parameters())
    restored.load_state_dict(copy.deepcopy(peer.state_dict()))

    for model, stepped in ((ours, optimizer), (twin, restored)):
        backward(model, 1)
        stepped.step()

    assert_same_bits(ours, twin)

    fresh = torch.optim.Adam(make_model().parameters())
    restored.load_state_dict(fresh.state_dict())

    assert "repeats" not in restored.param_groups[0]


@pytest.mark.parametrize("option", ["amsgrad", "differentiable"])
def test_state_dicts_that_cannot_be_continued(option: str) -> None:
    model = make_model()
    optimizer = ReplayAdam(model.parameters(), lr=1e-2)
    train(model, optimizer, range(2), 2)
    before = copy.deepcopy(optimizer.state_dict())
    foreign = torch.optim.Adam(make_model().parameters(), **{option: True})

    with pytest.raises(ValueError, match=f"^ReplayAdam: {option} must be False"):
        optimizer.load_state_dict(foreign.state_dict())

    assert optimizer.state_dict()["param_groups"] == before["param_groups"]
    assert len(optimizer.state_dict()["state"]) == 3


def test_state_dict_of_another_optimizer() -> None:
    foreign = torch.optim.SGD(make_model().parameters(), lr=0.1)
    optimizer = ReplayAdam(make_model().parameters())

    with pytest.raises(ValueError, match="^ReplayAdam: .* must have 'betas', got"):
        optimizer.load_state_dict(foreign.state_dict())


def pickled(model: torch.nn.Module, optimizer: ReplayAdam) -> Any:
    return pickle.loads(pickle.dumps((model, optimizer)))


def copied(model: torch.nn.Module, optimizer: ReplayAdam) -> Any:
    return copy.deepcopy((model, optimizer))


def restored(model: torch.nn.Module, optimizer: ReplayAdam) -> Any:
    """A new optimizer, with the state out of a file."""
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    twin = copy.deepcopy(model)
    new = ReplayAdam(twin.parameters())
    new.load_state_dict(torch.load(file, weights_only=True))
    return twin, new


@pytest.mark.parametrize("duplicate", [copied, pickled, restored])
def test_copies_go_on_alike(duplicate: Callable) -> None:
    model = make_model()
    optimizer = ReplayAdam(model.parameters(), lr=1e-2)
    train(model, optimizer, range(3), 2)
    twin_model, twin = duplicate(model, optimizer)
    train(model, optimizer, range(3, 6), 2)
    train(twin_model, twin, range(3, 6), 2)

    assert_same_bits(model, twin_model)


def pointers(optimizer: ReplayAdam) -> list[int]:
    addresses = []
    for state in optimizer.state.values():
        for tensor in state.values():
            addresses.append(tensor.data_ptr())

    return addresses


def test_reset_equals_a_new_optimizer_and_keeps_its_buffers() -> None:
    """Whatever they hold."""
    model = make_model(torch.float32)
    optimizer = ReplayAdam(model.parameters(), lr=1e-2)
    optimizer.reset()

    assert not optimizer.state

    optimizer.make_state()
    for state in optimizer.state.values():
        state["exp_avg"].fill_(math.nan)

    buffers = pointers(optimizer)
    optimizer.reset()
    twin = copy.deepcopy(model)
    train(model, optimizer, range(3, 6), 2)
    train(twin, ReplayAdam(twin.parameters(), lr=1e-2), range(3, 6), 2)

    assert_same_bits(model, twin)

    assert pointers(optimizer) == buffers


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
    optimizer = ReplayAdam(make_model(torch.float32).parameters())
    optimizer.make_state()

    with Operators() as operators:
        optimizer.reset()

    assert operators.names == ["_foreach_zero_"]


def test_state_made_ahead_is_that_of_the_first_step() -> None:
    model = make_model(torch.float32)
    optimizer = ReplayAdam(model.parameters(), lr=1e-2)
    optimizer.make_state()

    assert len(optimizer.state) == len(list(model.parameters()))

    buffers = pointers(optimizer)

    twin = copy.deepcopy(model)
    train(model, optimizer, range(3), 2)
    train(twin, ReplayAdam(twin.parameters(), lr=1e-2), range(3), 2)

    assert_same_bits(model, twin)

    before = copy.deepcopy(optimizer.state_dict()["state"])
    optimizer.make_state()
    after = optimizer.state_dict()["state"]

    torch.testing.assert_close(after, before, rtol=0, atol=0)

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

    assert next(calls) == complete + 1

    twin = make_model()
    train(model, optimizer, range(3), 2)
    train(twin, ReplayAdam(twin.parameters()), range(3), 2)

    assert_same_bits(model, twin)


def test_options_that_numpy_made() -> None:
    """A schedule in NumPy's arithmetic gives rates that are no floats, and states with them."""
    theirs = torch.ones(3, requires_grad=True)
    ours = torch.ones(3, requires_grad=True)
    before = torch.optim.Adam([theirs], lr=np.float32(0.25))
    after = ReplayAdam([ours], lr=np.float32(0.5), eps=np.float64(1e-8))
    after.load_state_dict(copy.deepcopy(before.state_dict()))

    for param, optimizer in ((theirs, before), (ours, after)):
        param.grad = torch.ones(3)
        optimizer.step()

    torch.testing.assert_close(ours, theirs)
