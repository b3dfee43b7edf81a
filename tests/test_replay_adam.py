"""ReplayAdam as a torch.optim.Optimizer."""

import copy
import math
import pickle
from collections.abc import Callable

import pytest
import torch

from hullft_ops.replay import ReplayAdam

Model = torch.nn.Sequential
OptimizerClass = Callable[..., torch.optim.Optimizer]


def make_model(dtype: torch.dtype = torch.float64) -> Model:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3, bias=False)
    ).to(dtype)


def backward(model: Model, seed: int) -> None:
    model.zero_grad()
    dtype = next(model.parameters()).dtype
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(seed)).to(dtype)
    model(x).square().sum().backward()


def train(model: Model, optimizer: torch.optim.Optimizer, seeds: range, repeats: int) -> None:
    """Each gradient is used ``repeats`` times."""
    for seed in seeds:
        backward(model, seed)
        if isinstance(optimizer, ReplayAdam):
            optimizer.step(repeats=repeats)
        else:
            for _ in range(repeats):
                optimizer.step()


def assert_close(ours: Model, theirs: Model) -> None:
    """Float64 arithmetic in two orders, through a model that amplifies differences a little."""
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)


def assert_same_bits(ours: Model, theirs: Model) -> None:
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(p, q)


def grouped(model: Model, optimizer: OptimizerClass) -> torch.optim.Optimizer:
    return optimizer(
        [
            {"params": model[0].parameters(), "lr": 1e-2, "betas": (0.8, 0.9)},
            {"params": model[2].parameters(), "weight_decay": 0.1, "eps": 1e-3, "maximize": True},
        ],
        lr=1e-3,
    )


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
    assert optimizer.param_groups[0]["param_names"] == ["0.weight", "0.bias", "2.weight"]


@pytest.mark.parametrize(
    "schedule",
    [
        lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=12),
        lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step),
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
    optimizer, peer = ReplayAdam(ours.parameters(), lr=lr), torch.optim.Adam(theirs.parameters())
    for seed in range(4):
        peer.param_groups[0]["lr"] = float(lr)
        train(ours, optimizer, range(seed, seed + 1), 2)
        train(theirs, peer, range(seed, seed + 1), 2)
        lr *= 0.5
    assert_close(ours, theirs)


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


@pytest.mark.parametrize("peer", PEERS)
def test_state_dict_to_torch(peer: str) -> None:
    ours = make_model()
    optimizer_class, options = PEERS[peer]
    before = ReplayAdam(
        ours.parameters(), lr=1e-2, weight_decay=0.1, decoupled_weight_decay=peer == "AdamW"
    )
    train(ours, before, range(5), 2)
    theirs = copy.deepcopy(ours)
    after = optimizer_class(theirs.parameters(), **options)
    after.load_state_dict(copy.deepcopy(before.state_dict()))
    train(ours, before, range(5, 10), 2)
    train(theirs, after, range(5, 10), 2)
    assert_close(ours, theirs)


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
        {k: group[k] for k in ("params", "lr", "betas", "eps", "weight_decay", "amsgrad")}
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
    with pytest.raises(ValueError, match=f"^ReplayAdam: {option} must be False, got True$"):
        optimizer.load_state_dict(foreign)
    assert optimizer.state_dict()["param_groups"] == before["param_groups"]
    assert len(optimizer.state_dict()["state"]) == 3


def test_state_dict_of_another_optimizer() -> None:
    foreign = torch.optim.SGD(make_model().parameters(), lr=0.1).state_dict()
    with pytest.raises(ValueError, match=r"^ReplayAdam: a parameter group must have 'betas', got"):
        ReplayAdam(make_model().parameters()).load_state_dict(foreign)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
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
    buffers = [t.data_ptr() for state in optimizer.state.values() for t in state.values()]
    optimizer.reset()
    twin = copy.deepcopy(model)
    train(model, optimizer, range(3, 6), 2)
    train(twin, ReplayAdam(twin.parameters(), lr=1e-2), range(3, 6), 2)
    assert_same_bits(model, twin)
    assert buffers == [t.data_ptr() for state in optimizer.state.values() for t in state.values()]


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
    optimizer.register_step_pre_hook(lambda opt, args, kwargs: seen.append(("pre", kwargs)))
    optimizer.register_step_post_hook(lambda opt, args, kwargs: seen.append(("post", kwargs)))
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


def test_backward_through_a_stale_graph_is_an_error() -> None:
    param = torch.ones(3, requires_grad=True)
    loss = param.square().sum()
    param.grad = torch.ones(3)
    ReplayAdam([param]).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_sparse_gradients() -> None:
    embedding = torch.nn.Embedding(10, 3, sparse=True)
    dense = torch.ones(2, requires_grad=True)
    optimizer = ReplayAdam([dense, embedding.weight])
    (embedding(torch.tensor([1, 2])).sum() + dense.sum()).backward()
    message = "the gradient of parameter 1 must be dense, got layout torch.sparse_coo; .*SparseAdam"
    with pytest.raises(TypeError, match=message):
        optimizer.step()
    assert torch.equal(dense.detach(), torch.ones(2))


def test_parameters_on_the_meta_device() -> None:
    param = torch.zeros(3, device="meta", requires_grad=True)
    param.grad = torch.zeros(3, device="meta")
    with pytest.raises(ValueError, match="parameter 0 has no storage, it is on the meta device"):
        ReplayAdam([param]).step()


def test_a_gradient_on_another_device() -> None:
    param = torch.zeros(3, requires_grad=True)
    message = "the gradient of parameter 0 is on meta, the parameter on cpu"
    with pytest.raises(ValueError, match=message):
        ReplayAdam([param]).step(grads={param: torch.ones(3, device="meta")})


def test_parameters_whose_storage_was_freed() -> None:
    param = torch.zeros(3, requires_grad=True)
    param.grad = torch.ones(3)
    optimizer = ReplayAdam([param])
    optimizer.step()
    param.data.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match=r"params\[0\] needs 12 bytes of storage, it has 0"):
        optimizer.step()


def test_parameters_that_share_memory() -> None:
    shared = torch.zeros(5)
    params = [shared[:3].requires_grad_(), shared[2:].requires_grad_()]
    for param in params:
        param.grad = torch.ones(3)
    with pytest.raises(ValueError, match=r"params\[1\] overlaps params\[0\] in memory"):
        ReplayAdam(params).step()
    assert torch.equal(shared, torch.zeros(5))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64])
def test_parameters_that_are_not_floating(dtype: torch.dtype) -> None:
    message = f"parameter 1 of the group must be float32, .*, got {dtype}"
    with pytest.raises(ValueError, match=message):
        ReplayAdam([torch.zeros(3), torch.zeros(3, dtype=dtype)])
    optimizer = ReplayAdam([torch.zeros(3)])
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": [torch.ones(3), torch.zeros(3, dtype=dtype)]})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"lr": -1.0}, ValueError, "lr must be finite and >= 0, got -1.0"),
        ({"lr": math.nan}, ValueError, "lr must be finite and >= 0, got nan"),
        ({"lr": "fast"}, TypeError, "lr must be a number, got str"),
        ({"lr": torch.ones(2)}, ValueError, r"lr must have one element, got shape \[2\]"),
        ({"betas": (0.9, 1.0)}, ValueError, r"betas\[1\] must be in \[0, 1\), got 1.0"),
        ({"betas": (-0.1, 0.9)}, ValueError, r"betas\[0\] must be in \[0, 1\), got -0.1"),
        ({"betas": 0.9}, ValueError, "betas must be two numbers, got 0.9"),
        ({"eps": -1e-8}, ValueError, "eps must be finite and >= 0, got -1e-08"),
        ({"weight_decay": math.inf}, ValueError, "weight_decay must be finite and >= 0, got inf"),
        ({"amsgrad": True}, ValueError, "amsgrad must be False, got True"),
    ],
    ids=str,
)
def test_bad_options(options: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^ReplayAdam: {message}$"):
        ReplayAdam([{"params": [torch.zeros(3)], **options}])
    optimizer = ReplayAdam([torch.zeros(3)])
    with pytest.raises(error, match=f"^ReplayAdam: {message}$"):
        optimizer.add_param_group({"params": [torch.zeros(3)], **options})
    assert len(optimizer.param_groups) == 1


def test_an_option_that_went_bad_later() -> None:
    model = make_model()
    optimizer = ReplayAdam(model.parameters())
    backward(model, 0)
    optimizer.param_groups[0]["lr"] = -1.0
    before = copy.deepcopy(model)
    with pytest.raises(ValueError, match="lr must be finite and >= 0, got -1"):
        optimizer.step()
    assert_same_bits(model, before)


@pytest.mark.parametrize(
    ("repeats", "error", "message"),
    [
        (0, ValueError, r"repeats must be in 1\.\.2147483647, got 0"),
        (-1, ValueError, r"repeats must be in 1\.\.2147483647, got -1"),
        (2**31, ValueError, r"repeats must be in 1\.\.2147483647, got 2147483648"),
        (2.0, TypeError, "repeats must be an int, got float"),
        (True, TypeError, "repeats must be an int, got bool"),
    ],
)
def test_bad_repeats(repeats: object, error: type[Exception], message: str) -> None:
    """Refused before the closure runs, and whether or not there are gradients."""
    optimizer, calls = ReplayAdam(make_model().parameters()), []
    with pytest.raises(error, match=f"^ReplayAdam.step: {message}$"):
        optimizer.step(lambda: calls.append(1), repeats=repeats)
    assert not calls


def test_closure_and_given_gradients() -> None:
    with pytest.raises(ValueError, match="closure and grads exclude each other"):
        ReplayAdam([torch.zeros(3)]).step(lambda: 0.0, grads={})


def test_a_bad_group_leaves_all_groups_as_they_were() -> None:
    model = make_model()
    optimizer = grouped(model, ReplayAdam)
    backward(model, 0)
    model[2].weight.grad = model[2].weight.grad.to_sparse()
    before = copy.deepcopy(model)
    with pytest.raises(TypeError, match="must be dense"):
        optimizer.step()
    assert_same_bits(model, before)
