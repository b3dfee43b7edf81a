"""The bookkeeping of captured passes. A stand-in for a graph calls the pass again."""

import warnings
from types import SimpleNamespace

import pytest
import torch

from hullft_ops.ttft.training.checks import trainable_parameters
from hullft_ops.ttft.training.graphs import PassGraphs
from hullft_ops.ttft.training.steps import StageClock
from hullft_ops.ttft.training.trainer import SupportTrainer

# Paddings of 24, 32 (the context) and 24 tokens, as the tests' buckets are 8 tokens wide.
TEXTS = [list(range(3, 24)), list(range(50, 76)), list(range(9, 31, 1))]
COUNTS = [5, 2, 2]


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
        return (replay := Replay(self, run)), replay.loss


class Replay:
    def __init__(self, stand_in, run):
        self.stand_in, self.run = stand_in, run
        self.loss = torch.full((), torch.nan, dtype=torch.float64)

    def replay(self):
        self.stand_in.replays += 1
        self.loss.copy_(self.run())


@pytest.fixture(autouse=True)
def _narrow_buckets(monkeypatch):
    monkeypatch.setattr("hullft_ops.ttft.model.attention._BUCKET", 8)


def trainer_of(model, stand_in=None, **options):
    """A trainer of the float64 model; with a stand-in, as on a GPU."""
    trained = trainable_parameters(model.double())
    settings = {"lr": 1e-3, "order": "grouped", "schedule": "constant"}
    settings |= {"max_grad_norm": None, "autocast": None}
    trainer = SupportTrainer(model, trained, **settings | options)
    if stand_in is not None:
        trainer._is_padded = True
        trainer.pass_graphs = PassGraphs(model, trained, stand_in.new_capture)
    return trainer


def train(trainer, model, refresh=2):
    """Losses and trained parameters; the model is as before."""
    before = [parameter.detach().clone() for parameter in model.parameters()]
    clock, refreshes = StageClock(torch.device("cpu")), [refresh] * len(TEXTS)
    losses, _ = trainer.train(TEXTS, [0, 1, 2], COUNTS, refreshes, clock)
    after = [parameter.detach().clone() for parameter in model.parameters()]
    with torch.no_grad():
        torch._foreach_copy_(list(model.parameters()), before)
    return [torch.tensor(losses), *after]


def assert_alike(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        # Adam follows the sign of gradients that are only rounding.
        assert (one - other).norm() <= 1e-6 * other.norm()


@pytest.mark.parametrize(
    ("options", "captures", "replays"),
    [
        # Of the five passes, with 2, 2, 1, 2 and 2 steps, on 24, 24, 24, 32 and 24 tokens.
        ({}, 3, 2),
        ({"max_grad_norm": 1.0}, 3, 2),
        ({"schedule": "linear"}, 3, 2),
        # Gradients that later steps need are made outside of graphs: only the last is not kept.
        ({"order": "interleaved"}, 1, 0),
    ],
)
def test_a_pass_of_each_kind_is_captured_once(model, options, captures, replays):
    wanted = train(trainer_of(model, **options), model)
    stand_in = StandIn()
    trainer = trainer_of(model, stand_in, **options)
    assert_alike(train(trainer, model), wanted)
    assert (stand_in.captures, stand_in.replays) == (captures, replays)
    assert trainer.pass_graphs.count == captures
    assert_alike(train(trainer, model), wanted)
    assert (stand_in.captures, stand_in.replays) == (
        captures,
        replays + captures + replays,
    )
    assert stand_in.pools == 1
    assert all(parameter.grad is None for parameter in model.parameters())


def test_graphs_serve_one_prompt_after_the_other(gpt2, make, bits):
    before, stand_in, finetuner = bits(gpt2), StandIn(), make(gpt2)
    trainer = finetuner._trainer
    trainer._is_padded = True
    trainer.pass_graphs = PassGraphs(
        gpt2, trainable_parameters(gpt2), stand_in.new_capture
    )
    for _ in range(2):
        with finetuner.adapted("the cat sat on the red mat") as report:
            assert before.changed()
        assert not before.changed()
    assert (stand_in.pools, stand_in.captures) == (1, trainer.pass_graphs.count)
    assert stand_in.replays == 2 * report.forward_backward_passes - stand_in.captures
    assert not make(gpt2, graphs=False)._trainer.graphs


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
    wanted = train(trainer, gpt2)
    move(gpt2, trainer)
    assert_alike(train(trainer, gpt2), wanted)
    assert (stand_in.captures, stand_in.pools, trainer.pass_graphs.count) == (6, 2, 3)


@pytest.mark.parametrize("error", [RuntimeError("not permitted\nwhile capturing"),
                                   torch.OutOfMemoryError("not permitted")])  # fmt: skip
def test_what_cannot_be_captured_runs_as_before_and_says_why(gpt2, error):
    wanted = train(trainer_of(gpt2), gpt2)
    stand_in = StandIn(error)
    trainer = trainer_of(gpt2, stand_in)
    with pytest.warns(UserWarning, match="uses no CUDA graphs: not permitted$"):
        assert_alike(train(trainer, gpt2), wanted)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_alike(train(trainer, gpt2), wanted)
    assert (stand_in.captures, trainer.pass_graphs.count) == (1, 0)


def test_a_hook_is_called_in_every_pass(gpt2):
    stand_in, calls = StandIn(), []
    trainer = trainer_of(gpt2, stand_in)
    gpt2.transformer.h[0].register_forward_hook(lambda *_: calls.append(1))
    with pytest.warns(UserWarning, match="somebody listens to a module"):
        train(trainer, gpt2)
    assert stand_in.captures == 0
    assert len(calls) >= 5


class Recorded(StandIn):
    """As on a GPU, Python runs in the capture and not in a replay."""

    def capture(self, run):
        self.captures += 1
        loss = run()
        return SimpleNamespace(replay=lambda: None), loss


def test_replays_count_as_passes_with_full_logits(gpt2, monkeypatch):
    monkeypatch.setattr("hullft_ops.ttft.model.loss._SplitModel.of", lambda model: None)
    stand_in = Recorded()
    trainer = trainer_of(gpt2, stand_in)
    for n in (5, 10):
        train(trainer, gpt2)
        assert trainer.n_full_logits == n
    assert stand_in.captures == 3


def test_a_rate_is_read_by_each_replay(gpt2):
    """A graph captures where the rate is, not its value."""
    stand_in = StandIn()
    trainer = trainer_of(gpt2, stand_in)
    train(trainer, gpt2)
    trainer.lr = 1e-2
    found = train(trainer, gpt2)
    assert stand_in.captures == 3
    assert_alike(found, train(trainer_of(gpt2, lr=1e-2), gpt2))


def test_the_cpu_has_no_graphs(gpt2):
    trainer = trainer_of(gpt2)
    train(trainer, gpt2)
    assert trainer.pass_graphs is None
    assert not trainer._is_padded
