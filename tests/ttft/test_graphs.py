"""The bookkeeping of captured passes. A stand-in for a graph calls the pass again."""

import warnings

import pytest
import torch

from hullft_ops.ttft.config import TTFTConfig
from hullft_ops.ttft.graphs import PassGraphs
from hullft_ops.ttft.steps import StageClock
from hullft_ops.ttft.support import Support
from hullft_ops.ttft.training import SupportTrainer

# Padded to 24, 32 (the context) and 24 tokens, as the tests' buckets are 8 tokens wide.
TEXTS = [list(range(3, 24)), list(range(50, 76)), list(range(9, 31))]
SUPPORT = Support([0, 1, 2], [0.5, 0.3, 0.2], [5, 2, 2], 0.0, 0.0, TEXTS)


class StandIn:
    """Counts pools, captures and replays. A capture computes nothing."""

    def __init__(self, error=None):
        self.pools = self.captures = self.replays = 0
        self.error = error

    def new_capture(self):
        self.pools += 1
        return self.capture

    def capture(self, run):
        self.captures += 1
        if self.error is not None:
            raise self.error

        replay = Replay(self, run)
        return replay, replay.loss


class Replay:
    def __init__(self, stand_in, run):
        self.stand_in = stand_in
        self.run = run
        self.loss = torch.full((), torch.nan, dtype=torch.float64)

    def replay(self):
        self.stand_in.replays += 1
        self.loss.copy_(self.run())


@pytest.fixture(autouse=True)
def _narrow_buckets(monkeypatch):
    monkeypatch.setattr("hullft_ops.ttft.models.attention._BUCKET", 8)


def trainer_of(model, stand_in=None, **options):
    """A trainer of the model in float64; with a stand-in, as on a GPU."""
    config = TTFTConfig(**({"lr": 1e-3, "refresh": 2} | options))
    trained = [p for p in model.double().parameters() if p.requires_grad]
    trainer = SupportTrainer(model, trained, config)
    if stand_in is not None:
        trainer._is_padded = True
        trainer._graphs = PassGraphs(model, trained, stand_in.new_capture)
    return trainer


def train(trainer, model):
    """Losses and trained parameters; the model is as before."""
    parameters = list(model.parameters())
    before = [parameter.detach().clone() for parameter in parameters]
    losses = trainer.train(SUPPORT, StageClock(torch.device("cpu")))
    after = [parameter.detach().clone() for parameter in parameters]
    with torch.no_grad():
        torch._foreach_copy_(parameters, before)
    return [torch.tensor(losses), *after]


def assert_alike(actual, expected):
    for value, other in zip(actual, expected, strict=True):
        # Adam follows the sign of gradients that are only rounding.
        assert (value - other).norm() <= 1e-6 * other.norm()


def test_a_pass_of_each_kind_is_captured_once(model):
    expected = train(trainer_of(model), model)
    stand_in = StandIn()
    trainer = trainer_of(model, stand_in)
    # Of the five passes, with 2, 2, 1, 2 and 2 steps, on 24, 24, 24, 32 and 24 tokens.
    captures, replays = 3, 2
    assert_alike(train(trainer, model), expected)
    assert (stand_in.captures, stand_in.replays) == (captures, replays)
    assert trainer._graphs.count == captures
    assert_alike(train(trainer, model), expected)
    assert stand_in.captures == captures
    assert stand_in.replays == replays + captures + replays
    assert stand_in.pools == 1
    assert all(parameter.grad is None for parameter in model.parameters())


def move_a_parameter(model, trainer):
    parameter = next(model.parameters())
    parameter.data = parameter.data.clone()


def move_a_moment(model, trainer):
    state = trainer._optimizer.state[next(model.parameters())]
    state["exp_avg"] = state["exp_avg"].clone()


@pytest.mark.parametrize("move", [move_a_parameter, move_a_moment])
def test_graphs_of_memory_that_has_moved_are_dropped(gpt2, move):
    stand_in = StandIn()
    trainer = trainer_of(gpt2, stand_in)
    expected = train(trainer, gpt2)
    move(gpt2, trainer)

    assert_alike(train(trainer, gpt2), expected)
    assert (stand_in.captures, stand_in.pools, trainer._graphs.count) == (6, 2, 3)


def test_what_cannot_be_captured_runs_as_before_and_says_why(gpt2):
    expected = train(trainer_of(gpt2), gpt2)
    stand_in = StandIn(RuntimeError("not permitted\nwhile capturing"))
    trainer = trainer_of(gpt2, stand_in)
    with pytest.warns(UserWarning, match="uses no CUDA graphs: not permitted$"):
        assert_alike(train(trainer, gpt2), expected)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_alike(train(trainer, gpt2), expected)

    assert (stand_in.captures, trainer._graphs.count) == (1, 0)
