"""The budget in seconds."""

from types import SimpleNamespace

import pytest

from hullft_ops.ttft import training
from hullft_ops.ttft.loss import MeanLoss
from hullft_ops.ttft.training import Deadline

PROMPT = "the cat sat on the red mat"


@pytest.fixture
def time(monkeypatch):
    """A clock that shows ``time.now``."""
    # As on a machine that has been up for a year.
    clock = SimpleNamespace(now=3e7)
    monkeypatch.setattr(training, "perf_counter", lambda: clock.now)
    return clock


def test_a_deadline_expects_the_slowest_pass_so_far(time):
    deadline = Deadline(10.0)

    def takes(seconds, tokens):
        assert deadline.begin(tokens)
        time.now += seconds

    takes(2.0, 10)
    takes(1.0, 30)
    takes(3.0, 10)
    takes(1.0, 5)

    # 3 seconds are left. On as few tokens a pass takes 3, on 11 it would take 3.3.
    assert not deadline.begin(11)
    assert deadline.begin(10)


@pytest.fixture
def passes(time, monkeypatch):
    """When each pass begins. It takes a second, and everything else no time."""
    begun = []
    loss = MeanLoss.__call__

    def slow_loss(self, tokens):
        begun.append(time.now)
        time.now += 1
        return loss(self, tokens)

    monkeypatch.setattr(MeanLoss, "__call__", slow_loss)
    return begun


@pytest.mark.parametrize("seconds", [0.5, 2.5, 4.0, 1000.0])
def test_a_budget_skips_the_steps_that_would_end_late(gpt2, make, passes, seconds):
    finetuner = make(gpt2, max_length=4)
    with finetuner.adapted(PROMPT) as whole:
        pass

    passes.clear()
    with finetuner.adapted(PROMPT, seconds=seconds) as adaptation:
        pass

    # Nobody knows how long the first takes.
    count = max(1, min(int(seconds), whole.passes))

    assert adaptation.losses == whole.losses[:count]
    assert len(passes) == count

    assert adaptation.total_steps + adaptation.skipped_steps == whole.total_steps == 12
    assert (adaptation.skipped_steps > 0) == (count < whole.passes)
