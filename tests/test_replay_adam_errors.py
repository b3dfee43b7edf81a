"""What ReplayAdam refuses, and that it is left as it was."""

import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from adam_training import assert_same_bits, backward, grouped, make_model
from hullft_ops.replay import ReplayAdam


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
    with pytest.raises(
        ValueError, match="parameter 0 has no storage, it is on the meta device"
    ):
        ReplayAdam([param]).step()


@pytest.mark.parametrize("name", ["exp_avg", "exp_avg_sq", "step"])
def test_state_on_the_meta_device(name: str) -> None:
    """Any meta tensor among its arguments would have made the operator do nothing."""
    param = torch.zeros(3, requires_grad=True)
    optimizer = ReplayAdam([param])
    optimizer.make_state()
    optimizer.state[param][name] = optimizer.state[param][name].to("meta")
    with pytest.raises(ValueError, match=f"{name} of parameter 0 has no storage"):
        optimizer.step(grads={param: torch.ones(3)})


def test_gradients_that_are_no_tensors() -> None:
    param = torch.zeros(3, requires_grad=True)
    optimizer = ReplayAdam([param])
    message = "the gradient of parameter 0 must be a torch.Tensor, got list"
    with pytest.raises(TypeError, match=message):
        optimizer.step(grads={param: [1.0, 2.0, 3.0]})
    with pytest.raises(
        TypeError, match=r"got ndarray; torch.from_numpy\(array\) makes one"
    ):
        optimizer.step(grads={param: np.ones(3, np.float32)})
    with pytest.raises(
        TypeError, match="grads must map parameters to gradients, got list"
    ):
        optimizer.step(grads=[param])
    assert not optimizer.state


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
    with pytest.raises(
        ValueError, match=r"params\[0\] needs 12 bytes of storage, it has 0"
    ):
        optimizer.step()


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("step", 5, TypeError, "step of parameter 0 must be a torch.Tensor, got int"),
        ("exp_avg", None, ValueError, "the state of parameter 0 has no exp_avg"),
    ],
)
def test_a_state_that_went_bad(
    name: str, value: object, error: type[Exception], message: str
) -> None:
    param = torch.zeros(3, requires_grad=True)
    param.grad = torch.ones(3)
    optimizer = ReplayAdam([param])
    optimizer.step()
    before = param.detach().clone()
    del optimizer.state[param][name]
    if value is not None:
        optimizer.state[param][name] = value
    with pytest.raises(error, match=f"^ReplayAdam.step: {message}$"):
        optimizer.step()
    assert torch.equal(param, before)


def test_a_learning_rate_without_storage() -> None:
    param = torch.zeros(3, requires_grad=True)
    param.grad = torch.ones(3)
    optimizer = ReplayAdam([param], capturable=True)
    optimizer.param_groups[0]["lr"] = torch.tensor(0.1, device="meta")
    with pytest.raises(
        ValueError, match="lr_tensor is on meta, the first tensor is on cpu"
    ):
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
        optimizer.add_param_group(
            {"params": [torch.ones(3), torch.zeros(3, dtype=dtype)]}
        )
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"lr": -1.0}, ValueError, "lr must be finite and >= 0, got -1.0"),
        ({"lr": math.nan}, ValueError, "lr must be finite and >= 0, got nan"),
        ({"lr": "fast"}, TypeError, "lr must be a number, got str"),
        (
            {"lr": torch.tensor(1j)},
            TypeError,
            "lr must be a real number, got torch.complex64",
        ),
        (
            {"lr": torch.ones(2)},
            ValueError,
            r"lr must have one element, got shape \[2\]",
        ),
        ({"betas": (0.9, 1.0)}, ValueError, r"betas\[1\] must be in \[0, 1\), got 1.0"),
        (
            {"betas": (-0.1, 0.9)},
            ValueError,
            r"betas\[0\] must be in \[0, 1\), got -0.1",
        ),
        ({"betas": 0.9}, ValueError, "betas must be two numbers, got 0.9"),
        ({"eps": -1e-8}, ValueError, "eps must be finite and >= 0, got -1e-08"),
        (
            {"weight_decay": math.inf},
            ValueError,
            "weight_decay must be finite and >= 0, got inf",
        ),
        ({"maximize": "yes"}, TypeError, "maximize must be a bool, got str"),
        (
            {"decoupled_weight_decay": None},
            TypeError,
            "decoupled_weight_decay must be a bool, got NoneType",
        ),
        ({"amsgrad": True}, ValueError, "amsgrad must be False, got True"),
        ({"repeats": 0}, ValueError, r"repeats must be in 1\.\.2147483647, got 0"),
        ({"repeats": 2.0}, TypeError, "repeats must be an int, got float"),
        (
            {"differentiable": True},
            ValueError,
            "differentiable must be False, got True",
        ),
        ({"fused": 1}, TypeError, "fused must be a bool or None, got int"),
        (
            {"foreach": True, "fused": True},
            ValueError,
            "foreach and fused exclude each other, got both",
        ),
        (
            {"betas": (0.9, torch.tensor(0.99))},
            ValueError,
            "betas must be two numbers or two tensors, got float and Tensor",
        ),
    ],
    ids=str,
)
def test_bad_options(
    options: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^ReplayAdam: {message}$"):
        ReplayAdam([{"params": [torch.zeros(3)], **options}])
    optimizer = ReplayAdam([torch.zeros(3)])
    with pytest.raises(error, match=f"^ReplayAdam: {message}$"):
        optimizer.add_param_group({"params": [torch.zeros(3)], **options})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("option", ["amsgrad", "differentiable"])
def test_what_torch_does_and_this_does_not(option: str) -> None:
    with pytest.raises(
        ValueError, match=f"^ReplayAdam: {option} must be False, got True$"
    ):
        ReplayAdam([torch.zeros(3)], **{option: True})


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


Spoil = Callable[[ReplayAdam, dict[torch.Tensor, torch.Tensor]], None]


def bad_second_groups() -> dict[str, tuple[Spoil, type[Exception], str]]:
    """What each does to an optimizer of two groups and the gradients of its parameters."""

    def option(name: str, value: object) -> Spoil:
        return lambda optimizer, grads: optimizer.param_groups[1].update({name: value})

    def gradient(spoiled: Callable[[torch.Tensor], torch.Tensor]) -> Spoil:
        def spoil(
            optimizer: ReplayAdam, grads: dict[torch.Tensor, torch.Tensor]
        ) -> None:
            param = optimizer.param_groups[1]["params"][0]
            grads[param] = spoiled(grads[param])

        return spoil

    def state(name: str, value: torch.Tensor) -> Spoil:
        def spoil(
            optimizer: ReplayAdam, grads: dict[torch.Tensor, torch.Tensor]
        ) -> None:
            optimizer.state[optimizer.param_groups[1]["params"][0]][name] = value

        return spoil

    def rate(value: torch.Tensor) -> Spoil:
        return lambda optimizer, grads: optimizer.param_groups[1].update(
            lr=value, capturable=True
        )

    def one_memory(
        optimizer: ReplayAdam, grads: dict[torch.Tensor, torch.Tensor]
    ) -> None:
        first, second = (group["params"][0] for group in optimizer.param_groups)
        second.data = first.detach().view(-1)[4:28].view(3, 8)

    check = "adam_replay_check: "
    return {
        "layout": (gradient(torch.Tensor.to_sparse), TypeError, "must be dense"),
        "shape": (
            gradient(lambda grad: grad[:1]),
            ValueError,
            check + r"grads\[2\] has shape \[1, 8\], params\[2\] has shape \[3, 8\]",
        ),
        "dtype": (
            gradient(lambda grad: grad.long()),
            ValueError,
            check
            + r"grads\[2\] must be float32, float64, bfloat16 or float16, got int64",
        ),
        "moment": (
            state("exp_avg", torch.zeros(3, 8)),
            ValueError,
            check + r"exp_avgs\[2\] is float32, params\[2\] is float64",
        ),
        "step count": (
            state("step", torch.tensor(-1.0)),
            ValueError,
            check + r"steps\[2\] must be finite and >= 0, got -1",
        ),
        "one memory": (
            one_memory,
            ValueError,
            check + r"params\[2\] overlaps params\[0\]",
        ),
        "lr": (
            option("lr", -1.0),
            ValueError,
            "ReplayAdam: lr must be finite and >= 0, got -1.0",
        ),
        "betas": (
            option("betas", (0.9, 1.0)),
            ValueError,
            r"betas\[1\] must be in \[0, 1\), got 1",
        ),
        "maximize": (
            option("maximize", "yes"),
            TypeError,
            "maximize must be a bool, got str",
        ),
        "lr tensor's dtype": (
            rate(torch.tensor(1e-3, dtype=torch.float16)),
            ValueError,
            check + r"lr_tensors\[0\] must hold one float32 or float64 value",
        ),
        "lr tensor's value": (
            rate(torch.tensor(-1.0)),
            ValueError,
            check + r"lr_tensors\[0\] must be finite and >= 0, got -1",
        ),
    }


LR_ON_CPU = pytest.mark.cpu_only(
    "a learning rate on the device is read there, unchecked"
)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=LR_ON_CPU if case == "lr tensor's value" else ())
        for case in bad_second_groups()
    ],
)
def test_a_bad_group_leaves_all_groups_as_they_were(case: str) -> None:
    spoil, error, message = bad_second_groups()[case]
    model = make_model()
    optimizer = grouped(model, ReplayAdam)
    backward(model, 0)
    optimizer.step()
    grads = {param: param.grad for param in model.parameters()}
    spoil(optimizer, grads)
    before = copy.deepcopy((list(model.parameters()), optimizer.state_dict()["state"]))
    with pytest.raises(error, match=message):
        optimizer.step(grads=grads)
    after = list(model.parameters()), optimizer.state_dict()["state"]
    torch.testing.assert_close(after, before, rtol=0, atol=0)
