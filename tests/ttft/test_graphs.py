"""The bookkeeping of captured passes. A stand-in for a graph calls the pass again."""

import warnings
import weakref
from contextlib import contextmanager, nullcontext

import pytest
import torch

from hullft_ops.ttft import capture, loss, training
from hullft_ops.ttft.config import TTFTConfig
from hullft_ops.ttft.graphs import PassGraphs
from hullft_ops.ttft.steps import StageClock, schedule
from hullft_ops.ttft.support import Support
from hullft_ops.ttft.training import SupportTrainer

# Padded to 24, 32 (the context) and 24 tokens, as the tests' buckets are 8 tokens wide.
TEXTS = [list(range(3, 24)), list(range(50, 76)), list(range(9, 31))]
NO_CLOCK = StageClock(torch.device("cpu"))
SUPPORT = Support([0, 1, 2], [0.5, 0.3, 0.2], [5, 2, 2], 0.0, 0.0, TEXTS)


class StandIn:
    """Counts what it does. A capture computes nothing.

    Of all passes that it watches, those in ``waiting`` wait for the device.
    """

    def __init__(self, waiting=()):
        self.captures = self.replays = self.watches = self.releases = 0
        self.rehearsals = 0
        self.waiting = waiting

    def record(self, run):
        self.captures += 1
        replay = Replay(self, run)
        return replay, replay.loss

    def rehearse(self, run):
        self.rehearsals += 1
        return run()

    def release(self):
        self.releases += 1

    @contextmanager
    def watched(self):
        waits = []
        yield waits
        self.watches += 1
        if self.watches in self.waiting:
            waits.append("loss.py:7")


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


@pytest.fixture(autouse=True)
def _precision_as_before():
    before = torch.backends.cuda.matmul.fp32_precision
    yield
    torch.backends.cuda.matmul.fp32_precision = before


def trainer_of(model, stand_in=None, **options):
    """A trainer of the model in float64; with a stand-in, as on a GPU."""
    config = TTFTConfig(**({"lr": 1e-3, "refresh": 2, "order": "grouped"} | options))
    trained = [p for p in model.double().parameters() if p.requires_grad]
    trainer = SupportTrainer(model, trained, config)
    if stand_in is not None:
        trainer._is_padded = True
        trainer._graphs = PassGraphs(model, trained, stand_in)
    return trainer


def train(trainer, model):
    """Losses and trained parameters; the model is as before."""
    parameters = list(model.parameters())
    before = [parameter.detach().clone() for parameter in parameters]
    passes = schedule(SUPPORT.counts, trainer.config)
    losses = trainer.train(SUPPORT, passes, NO_CLOCK)
    after = [parameter.detach().clone() for parameter in parameters]
    with torch.no_grad():
        torch._foreach_copy_(parameters, before)
    return [torch.tensor(losses), *after]


def assert_alike(actual, expected):
    for value, other in zip(actual, expected, strict=True):
        # Adam follows the sign of gradients that are only rounding.
        assert (value - other).norm() <= 1e-6 * other.norm()


def test_a_length_is_captured_at_its_third_pass(model):
    expected = train(trainer_of(model), model)
    stand_in = StandIn()
    trainer = trainer_of(model, stand_in)
    # Of the five passes, with 2, 2, 1, 2 and 2 steps, on 24, 24, 24, 32 and 24 tokens.
    counts = []
    for _ in range(4):
        assert_alike(train(trainer, model), expected)
        counts.append((stand_in.captures, stand_in.replays, stand_in.watches))

    assert counts == [(1, 2, 3), (1, 6, 4), (2, 11, 4), (2, 16, 4)]
    assert (trainer._graphs.count, stand_in.rehearsals) == (2, 2)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("waiting", "captures", "replays"), [((1,), 1, 2), ((1, 2), 1, 1), (range(9), 0, 0)]
)
def test_a_pass_that_waits_again_is_not_captured(gpt2, waiting, captures, replays):
    expected = train(trainer_of(gpt2), gpt2)
    stand_in = StandIn(waiting)
    with warnings.catch_warnings(record=True) as caught:
        assert_alike(train(trainer_of(gpt2, stand_in), gpt2), expected)

    assert (stand_in.captures, stand_in.replays) == (captures, replays)
    messages = [str(warning.message) for warning in caught]
    once = [
        "TestTimeFinetuner: training uses no CUDA graphs: a pass waits for the GPU: loss.py:7"
    ]
    assert messages == (once if len(waiting) > 1 else [])


class Stream:
    def __init__(self, name, calls):
        self.name = name
        self.calls = calls

    def wait_stream(self, other):
        self.calls.append(f"{self.name} waits for {other.name}")


@pytest.mark.parametrize("max_grad_norm", [None, 1e9])
def test_steps_in_a_graph_go_beside_the_backward_pass(
    model, monkeypatch, max_grad_norm
):
    def use(stream):
        calls.append(f"steps on {stream.name}")
        return nullcontext()

    calls = []
    main = Stream("main", calls)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: main)
    monkeypatch.setattr(torch.cuda, "stream", use)
    monkeypatch.setattr(capture, "_branch_stream", lambda _: Stream("branch", calls))
    monkeypatch.setattr(loss, "_LEAST_BYTES", 0)
    expected = train(trainer_of(model), model)
    monkeypatch.setattr(training, "is_captured", lambda device: True)
    options = {"max_grad_norm": max_grad_norm}

    assert_alike(train(trainer_of(model, StandIn(), **options), model), expected)
    if max_grad_norm is not None:
        assert not calls
        return
    steps = ["branch waits for main", "steps on branch"]
    forked = calls[: calls.index("main waits for branch")]
    assert len(forked) > 9
    assert forked == [steps[0], *steps * (len(forked) // 2)]


def move_a_parameter(model, trainer, monkeypatch):
    parameter = next(model.parameters())
    parameter.data = parameter.data.clone()


def move_a_moment(model, trainer, monkeypatch):
    state = trainer._optimizer.state[next(model.parameters())]
    state["exp_avg"] = state["exp_avg"].clone()


def allow_tf32(model, trainer, monkeypatch):
    torch.set_float32_matmul_precision("high")


def forbid_flash_attention(model, trainer, monkeypatch):
    monkeypatch.setattr(torch.backends.cuda, "flash_sdp_enabled", lambda: False)


@pytest.mark.parametrize(
    "change", [move_a_parameter, move_a_moment, allow_tf32, forbid_flash_attention]
)
def test_graphs_that_no_longer_fit_are_dropped(gpt2, change, monkeypatch):
    stand_in = StandIn()
    trainer = trainer_of(gpt2, stand_in)
    expected = train(trainer, gpt2)
    change(gpt2, trainer, monkeypatch)
    before = stand_in.releases

    assert_alike(train(trainer, gpt2), expected)
    assert (stand_in.captures, trainer._graphs.count) == (2, 1)
    assert stand_in.releases == before + 1


class CutShort(StandIn):
    """Its captures make a tensor and a gradient, and fail."""

    def record(self, run):
        self.captures += 1
        activation = torch.ones(3)
        activation.cycle = [activation]
        self.parameter.grad = torch.zeros_like(self.parameter)
        self.tensors = [weakref.ref(activation), weakref.ref(self.parameter.grad)]
        raise RuntimeError("not permitted\nwhile capturing")

    def release(self):
        self.is_left = [tensor() is not None for tensor in self.tensors]


def test_what_cannot_be_captured_runs_as_before_and_says_why(gpt2):
    expected = train(trainer_of(gpt2), gpt2)
    stand_in = CutShort()
    stand_in.parameter = next(gpt2.parameters())
    stand_in.tensors = []
    trainer = trainer_of(gpt2, stand_in)
    with pytest.warns(UserWarning, match="uses no CUDA graphs: not permitted$"):
        assert_alike(train(trainer, gpt2), expected)

    # What is released holds no tensors any more.
    assert stand_in.is_left == [False, False]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_alike(train(trainer, gpt2), expected)

    assert (stand_in.captures, trainer._graphs.count) == (1, 0)
