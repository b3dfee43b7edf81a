"""What ReplayAdam refuses in the capture of a CUDA graph; no GPU is needed to be asked."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch._subclasses import FakeTensorMode

from hullft_ops.replay import ReplayAdam


@pytest.fixture
def capturing(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bool]]:
    """Fake tensors, and whether the stream of the first GPU is being captured."""
    now, current = {"yes": True}, [torch.device("cuda:1")]

    @contextmanager
    def device(wanted: torch.device) -> Iterator[None]:
        current.append(wanted)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(
        torch.cuda,
        "is_current_stream_capturing",
        lambda: now["yes"] and current[-1] == torch.device("cuda:0"),
    )
    with FakeTensorMode():
        yield now


def parameter(device: str) -> torch.Tensor:
    param = torch.zeros(3, device=device, requires_grad=True)
    param.grad = torch.ones(3, device=device)
    return param


def test_a_group_that_is_not_capturable(capturing: dict[str, bool]) -> None:
    groups = [{"params": [parameter("cuda")], "capturable": on} for on in (True, False)]
    optimizer, calls = ReplayAdam(groups), []
    message = (
        "^ReplayAdam.step: capturable of parameter group 1 must be True .*, got False$"
    )
    with pytest.raises(RuntimeError, match=message):
        optimizer.step(lambda: calls.append(1))
    assert not calls
    assert not optimizer.state


def test_a_step_count_on_the_cpu(capturing: dict[str, bool]) -> None:
    """As after a change of the group's option."""
    optimizer = ReplayAdam([parameter("cuda")])
    capturing["yes"] = False
    optimizer.step()
    capturing["yes"] = True
    optimizer.param_groups[0]["capturable"] = True
    message = "step of parameter 0 of group 0 must be on cuda:0 .*, got cpu$"
    with pytest.raises(RuntimeError, match=message):
        optimizer.step()


def test_state_that_the_capture_would_make(capturing: dict[str, bool]) -> None:
    optimizer = ReplayAdam([parameter("cuda")], capturable=True)
    for make in (optimizer.step, optimizer.make_state):
        with pytest.raises(
            RuntimeError, match=r"shape \[3\] must have its state before .*make_state"
        ):
            make()
    assert not any(optimizer.state.values())
    capturing["yes"] = False
    optimizer.make_state()
    capturing["yes"] = True
    optimizer.step()


def test_nothing_else_is_refused(capturing: dict[str, bool]) -> None:
    """Parameters on the CPU beside a capture, and steps outside of one."""
    ReplayAdam([parameter("cpu")]).step()
    capturing["yes"] = False
    ReplayAdam([parameter("cuda")]).step()
