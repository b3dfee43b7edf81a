"""What the sweeps and ReplayAdam refuse. Each error leaves everything as it was."""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch._subclasses import FakeTensorMode

from adam_problems import (
    OPS,
    OPTIONS,
    AdamTensors,
    make_tensors,
)
from adam_training import backward, grouped, make_model
from bad_tensors import (
    BAD_ADAM_OPTIONS,
    BAD_RATES,
    BAD_REPEATS,
    bad_accumulations,
    bad_adam_tensors,
    overlapping_step_counts,
)
from hullft_ops import ReplayAdam


def assert_refused(message: str, tensors: AdamTensors, **options: object) -> None:
    with pytest.raises(ValueError, match=f"^adam_replay_: {message}$"):
        OPS.adam_replay_(*tensors, **{"repeats": 1, **OPTIONS, **options})


@pytest.mark.parametrize("case", bad_adam_tensors())
def test_bad_tensors(case: str) -> None:
    assert_refused(*bad_adam_tensors()[case])


@pytest.mark.cpu_only("step counts stay on the CPU where other tensors do not")
@pytest.mark.parametrize("message", overlapping_step_counts())
def test_step_counts_within_other_tensors(message: str) -> None:
    assert_refused(f"{message} in memory", overlapping_step_counts()[message])


@pytest.mark.parametrize(("message", "options"), BAD_ADAM_OPTIONS)
def test_bad_options(message: str, options: dict[str, float]) -> None:
    assert_refused(message, make_tensors([3]), **options)


@pytest.mark.parametrize(("message", "rate"), BAD_RATES)
def test_bad_learning_rate_tensors(message: str, rate: torch.Tensor) -> None:
    assert_refused(f"lr_tensor {message}", make_tensors([3]), lr_tensor=rate)


@pytest.mark.cpu_only("a learning rate on the device is read by the launch, unchecked")
def test_a_learning_rate_tensor_that_is_not_a_number() -> None:
    rate = torch.tensor(math.nan)
    message = "lr_tensor must be finite and >= 0, got nan"
    assert_refused(message, make_tensors([3]), lr_tensor=rate)


@pytest.mark.cpu_only("a number of steps on the device is read by the launch")
@pytest.mark.parametrize(("message", "repeats"), BAD_REPEATS)
def test_bad_tensors_of_repeats(message: str, repeats: torch.Tensor) -> None:
    message = f"repeats_tensor {message}"
    assert_refused(message, make_tensors([3]), repeats_tensor=repeats)


def test_a_learning_rate_within_what_is_written() -> None:
    tensors = make_tensors([(2, 3), 4])
    rate = tensors.exp_avgs[1][2]
    message = r"(exp_avgs|lr_tensor)\[[01]\] overlaps .*"
    assert_refused(message, tensors, lr_tensor=rate)


@pytest.mark.parametrize("message", bad_accumulations())
def test_bad_accumulations(message: str) -> None:
    caches, grads, factors = bad_accumulations()[message]
    with pytest.raises(ValueError, match=f"^grad_accumulate_: {message}"):
        OPS.grad_accumulate_(caches, grads, **factors)


BAD_GROUP_OPTIONS = [
    (ValueError, "lr must be finite and >= 0, got -1.0", {"lr": -1.0}),
    (TypeError, "lr must be a number, got str", {"lr": "fast"}),
    (ValueError, "lr must have one element", {"lr": torch.ones(2)}),
    (ValueError, r"betas\[1\] must be in \[0, 1\), got 1.0", {"betas": (0.9, 1.0)}),
    (ValueError, "betas must be two numbers, got 0.9", {"betas": 0.9}),
    (ValueError, "amsgrad must be False, got True", {"amsgrad": True}),
    (ValueError, r"repeats must be in 0\.\..* got -1", {"repeats": -1}),
    (ValueError, r"rounding_seed must be in 0\.\..* got -1", {"rounding_seed": -1}),
    (ValueError, "lr_scales must be 1 finite", {"lr_scales": [1.0, 2.0]}),
]


ONE = torch.zeros(3)
TWO = torch.zeros(3)


@pytest.mark.parametrize(("error", "message", "options"), BAD_GROUP_OPTIONS)
def test_bad_options_of_a_group(
    error: type[Exception], message: str, options: dict[str, object]
) -> None:
    with pytest.raises(error, match=f"^ReplayAdam: {message}"):
        ReplayAdam([{"params": [torch.zeros(3)], **options}])

    optimizer = ReplayAdam([torch.zeros(3)])

    with pytest.raises(error, match=f"^ReplayAdam: {message}"):
        optimizer.add_param_group({"params": [torch.zeros(3)], **options})

    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ([ONE, ONE.long()], TypeError, r"params\[1\] must be float32, .*int64"),
        ([ONE, TWO, ONE], ValueError, r"params\[2\] is params\[0\] again"),
    ],
)
@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with dup")
def test_bad_parameters_of_a_group(
    params: list[torch.Tensor], error: type[Exception], message: str
) -> None:
    optimizer = ReplayAdam([torch.zeros(3)])

    with pytest.raises(error, match=f"^ReplayAdam: {message}"):
        optimizer.add_param_group({"params": params})

    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize(
    ("error", "repeats", "message"),
    [
        (ValueError, -1, r"must be in 0\.\.2147483647, got -1"),
        (TypeError, np.bool_(True), "must be an int, got bool"),
    ],
)
def test_bad_repeats(error: type[Exception], repeats: object, message: str) -> None:
    """Refused before the closure runs, and whether or not there are gradients."""
    optimizer = ReplayAdam(make_model().parameters())
    calls: list[int] = []

    with pytest.raises(error, match=f"^ReplayAdam.step: repeats {message}"):
        optimizer.step(lambda: calls.append(1), repeats=repeats)

    assert not calls


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (TypeError, "closure must be a function, got 4; step", {"closure": 4}),
        (
            ValueError,
            "closure and grads exclude each other",
            {"closure": float, "grads": {}},
        ),
        (TypeError, "grads must map parameters to gradients", {"grads": [ONE]}),
    ],
)
def test_bad_arguments_of_a_step(
    error: type[Exception], message: str, arguments: dict[str, object]
) -> None:
    with pytest.raises(error, match=f"^ReplayAdam.step: {message}"):
        ReplayAdam([torch.zeros(3)]).step(**arguments)


class Step:
    """A step of two groups; each case spoils something of the second."""

    def __init__(self) -> None:
        self.model = make_model()
        self.optimizer = grouped(self.model, ReplayAdam)
        backward(self.model, 0)
        self.optimizer.step()
        self.group = self.optimizer.param_groups[1]
        self.param = self.group["params"][0]
        self.grads = {param: param.grad for param in self.model.parameters()}

    def spoil_gradient(self, change: Callable[[torch.Tensor], object]) -> None:
        self.grads[self.param] = change(self.grads[self.param])

    def spoil_state(self, name: str, value: object) -> None:
        self.optimizer.state[self.param][name] = value

    def spoil_option(self, name: str, value: object) -> None:
        self.group[name] = value

    def tensors(self) -> object:
        params = self.group["params"]
        return params, [self.optimizer.state[param] for param in params]


BAD_STEPS: dict[str, tuple[type[Exception], Callable[[Step], None]]] = {
    "the gradient of parameter 0 must be dense, got layout torch.sparse_coo": (
        TypeError,
        lambda step: step.spoil_gradient(torch.Tensor.to_sparse),
    ),
    r"grads\[0\] has shape \[1, 8\], params\[0\] has shape \[3, 8\]": (
        ValueError,
        lambda step: step.spoil_gradient(lambda grad: grad[:1]),
    ),
    r"steps\[0\] must be finite and >= 0, got -1": (
        ValueError,
        lambda step: step.spoil_state("step", torch.tensor(-1.0)),
    ),
    "step of parameter 0 must be a torch.Tensor, got int": (
        TypeError,
        lambda step: step.spoil_state("step", 5),
    ),
    "lr must be finite and >= 0, got -1.0": (
        ValueError,
        lambda step: step.spoil_option("lr", -1.0),
    ),
}


@pytest.mark.parametrize("message", BAD_STEPS)
def test_a_bad_group_stays_as_it_was(message: str) -> None:
    error, spoil = BAD_STEPS[message]
    step = Step()
    spoil(step)
    before = copy.deepcopy(step.tensors())

    with pytest.raises(error, match=message):
        step.optimizer.step(grads=step.grads)

    torch.testing.assert_close(step.tensors(), before, rtol=0, atol=0)


@pytest.mark.cpu_only("a learning rate on the device is read there, unchecked")
def test_a_group_with_a_bad_rate_stays_as_it_was() -> None:
    step = Step()
    step.group |= {"capturable": True, "lr": torch.tensor(-1.0)}
    before = copy.deepcopy(step.tensors())

    with pytest.raises(ValueError, match="lr_tensor must be finite and >= 0"):
        step.optimizer.step(grads=step.grads)

    torch.testing.assert_close(step.tensors(), before, rtol=0, atol=0)


def test_a_parameter_on_the_meta_device() -> None:
    param = torch.zeros(3, device="meta", requires_grad=True)
    param.grad = torch.zeros(3, device="meta")

    with pytest.raises(ValueError, match="parameter 0 has no storage"):
        ReplayAdam([param]).step()


@pytest.fixture
def capturing(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bool]]:
    """Fake tensors; whether the stream of the first GPU, not of the present one, is captured."""
    capture = {"on": True}
    present = [torch.device("cuda:1")]

    @contextmanager
    def device(chosen: torch.device) -> Iterator[None]:
        present.append(chosen)
        yield
        present.pop()

    def is_capturing() -> bool:
        return capture["on"] and present[-1] == torch.device("cuda:0")

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", is_capturing)

    with FakeTensorMode():
        yield capture


def parameter(device: str) -> torch.Tensor:
    param = torch.zeros(3, device=device, requires_grad=True)
    param.grad = torch.ones(3, device=device)
    return param


def test_a_captured_group_must_be_capturable(capturing: dict[str, bool]) -> None:
    groups = [{"params": [parameter("cuda")], "capturable": on} for on in (True, False)]
    optimizer = ReplayAdam(groups)
    calls: list[int] = []

    with pytest.raises(RuntimeError, match="capturable of parameter group 1 .*False$"):
        optimizer.step(lambda: calls.append(1))

    assert not calls
    assert not optimizer.state


def test_a_captured_step_count_must_be_on_the_device(
    capturing: dict[str, bool],
) -> None:
    """It is not after a change of the group's option."""
    optimizer = ReplayAdam([parameter("cuda")])
    capturing["on"] = False
    optimizer.step()
    capturing["on"] = True
    optimizer.param_groups[0]["capturable"] = True

    with pytest.raises(RuntimeError, match="step of parameter 0 of group 0 must be on"):
        optimizer.step()


def test_a_capture_must_not_make_the_state(capturing: dict[str, bool]) -> None:
    optimizer = ReplayAdam([parameter("cuda")], capturable=True)
    for make in (optimizer.step, optimizer.make_state):
        with pytest.raises(
            RuntimeError, match="must have its state before .*make_state"
        ):
            make()

    assert not any(optimizer.state.values())

    capturing["on"] = False
    optimizer.make_state()
    capturing["on"] = True
    optimizer.step()


def test_a_capture_beside_parameters_on_the_cpu(capturing: dict[str, bool]) -> None:
    ReplayAdam([parameter("cpu")]).step()
