"""Adapting within a budget in seconds, on a clock that only retrieval and training move."""

import dataclasses
import math
from collections.abc import Callable
from fractions import Fraction
from itertools import accumulate

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

import hullft_ops
from hullft_ops.ttft import AdaptationReport, TestTimeFinetuner, adaptation
from hullft_ops.ttft.model.loss import MeanLoss
from hullft_ops.ttft.training import steps as steps_module
from hullft_ops.ttft.training.steps import ORDERS, SCHEDULES, Budget, plan

PROMPT = "the cat sat on the red mat"
Make = Callable[..., TestTimeFinetuner]


class Time:
    """What the clock shows, and how long retrieval, a pass and a replay take."""

    def __init__(self) -> None:
        # As on a machine that has been up for a year. float32 tells only every other second apart.
        self.now = 3e7
        self.retrieval = 0.0
        self.of_pass: Callable[[int], float] = lambda tokens: 1.0
        self.replay = 0.25
        self.passes: list[tuple[float, float]] = []

    def adapt(
        self, finetuner: TestTimeFinetuner, seconds: float
    ) -> tuple[AdaptationReport, float, list[tuple[float, float]]]:
        """The report, when the block was reached, and when each pass began and ended."""
        self.passes.clear()
        entered = self.now
        with finetuner.adapted(PROMPT, seconds=seconds) as report:
            reached = self.now
        spans = [(start - entered, end - entered) for start, end in self.passes]
        return report, reached - entered, spans


@pytest.fixture
def clock(embedder: object, monkeypatch: pytest.MonkeyPatch) -> Time:
    clock = Time()
    for module in (adaptation, steps_module):
        monkeypatch.setattr(module, "perf_counter", lambda: clock.now)
    encode, loss, replay = (
        embedder.encode,
        MeanLoss.__call__,
        hullft_ops.GradientCache.replay,
    )

    def slow_encode(texts: list[str]) -> np.ndarray:
        clock.now += clock.retrieval
        return encode(texts)

    def slow_loss(self: MeanLoss, tokens: torch.Tensor) -> torch.Tensor:
        start = clock.now
        clock.now += clock.of_pass(tokens.numel())
        clock.passes.append((start, clock.now))
        return loss(self, tokens)

    def slow_replay(*arguments: object, **options: object) -> None:
        clock.now += clock.replay
        replay(*arguments, **options)

    monkeypatch.setattr(embedder, "encode", slow_encode)
    monkeypatch.setattr(MeanLoss, "__call__", slow_loss)
    monkeypatch.setattr(hullft_ops.GradientCache, "replay", slow_replay)
    return clock


def steps_of_first(report: AdaptationReport, order: str, sweeps: int) -> list[int]:
    """How many steps each text has after so many sweeps."""
    steps = [0] * report.support_size
    for sweep in list(plan(report.counts, [report.refresh] * len(steps), order))[
        :sweeps
    ]:
        steps[sweep.example] += sweep.repeats
    return steps


def without_seconds(report: AdaptationReport) -> dict[str, object]:
    return {
        n: v
        for n, v in dataclasses.asdict(report).items()
        if not n.startswith("seconds_")
    }


@pytest.mark.parametrize("order", ORDERS)
def test_no_pass_starts_after_the_budget(
    gpt2: PreTrainedModel, make: Make, clock: Time, order: str
) -> None:
    """The times vary by a factor of four, so that some passes take longer than expected."""
    finetuner, random = make(gpt2, order=order), np.random.default_rng(0)
    clock.of_pass = lambda tokens: (1 + tokens / 10) * random.uniform(0.5, 2)
    ends = []
    for seconds in random.uniform(0.1, 40, 100):
        clock.retrieval, clock.replay = random.uniform(0, 2), random.uniform(0, 0.5)
        report, reached, passes = clock.adapt(finetuner, seconds)
        assert len(passes) == len(report.losses) == report.forward_backward_passes
        assert bool(passes) == (clock.retrieval < seconds)
        assert all(start < seconds for start, _ in passes)
        assert report.optimizer_steps == sum(report.steps_taken)
        assert report.steps_left_out == 12 - report.optimizer_steps
        longest = max((end - start for start, end in passes), default=clock.retrieval)
        assert reached - seconds < longest
        ends.append(
            "late" if reached > seconds else "early" if report.steps_left_out else "all"
        )
    assert set(ends) == {"late", "early", "all"}
    assert ends.count("late") < 20


@pytest.mark.parametrize("order", ORDERS)
def test_a_pass_that_takes_as_long_as_its_tokens_is_never_late(
    gpt2: PreTrainedModel, make: Make, clock: Time, order: str
) -> None:
    finetuner = make(gpt2, order=order)
    clock.of_pass = lambda tokens: 1 + tokens / 4
    for seconds in np.linspace(10, 100, 30):
        _, reached, passes = clock.adapt(finetuner, seconds)
        assert len(passes) > 0
        assert reached <= seconds


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("sweeps", [1, 2, 3, 5])
def test_the_heaviest_texts_come_first_and_all_that_fits_is_taken(
    gpt2: PreTrainedModel, make: Make, clock: Time, order: str, sweeps: int
) -> None:
    # Of texts that are cut to one length, each pass takes as long as expected.
    finetuner = make(gpt2, order=order, max_length=4)
    clock.retrieval = 2.0
    full, _, _ = clock.adapt(finetuner, math.inf)
    planned = list(plan(full.counts, [2] * full.support_size, order))
    ends = list(accumulate((1.0 if s.fresh else 0.25 for s in planned), initial=2.0))
    report, reached, _ = clock.adapt(finetuner, ends[sweeps])
    assert reached == ends[sweeps]
    assert report.steps_taken == steps_of_first(full, order, sweeps)
    assert report.losses == full.losses[: len(report.losses)]
    assert report.steps_left_out == 12 - sum(report.steps_taken) > 0
    assert report.counts == full.counts
    # The heaviest text stands first.
    assert report.steps_taken == sorted(report.steps_taken, reverse=True)
    less, _, _ = clock.adapt(finetuner, ends[sweeps] - 0.01)
    assert less.steps_taken == steps_of_first(full, order, max(1, sweeps - 1))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_with_time_enough_every_bit_is_as_without_a_budget(
    model: PreTrainedModel, make: Make, order: str, schedule: str
) -> None:
    finetuner = make(model, order=order, schedule=schedule)
    with finetuner.adapted(PROMPT) as report:
        wanted = [parameter.detach().clone() for parameter in model.parameters()]
    with finetuner.adapted(PROMPT, seconds=1e6) as budgeted:
        assert all(map(torch.equal, model.parameters(), wanted))
    assert without_seconds(budgeted) == without_seconds(report)
    assert report.steps_taken == report.counts
    assert report.steps_left_out == 0


def test_learning_rates_follow_the_schedule_of_all_steps(
    gpt2: PreTrainedModel, make: Make, clock: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    finetuner, step = make(gpt2, schedule="linear"), hullft_ops.ReplayAdam.step
    rates: dict[float, None] = {}

    def seen(self: hullft_ops.ReplayAdam, **options: object) -> None:
        rates.setdefault(self.param_groups[0]["lr"])
        step(self, **options)

    monkeypatch.setattr(hullft_ops.ReplayAdam, "step", seen)
    clock.adapt(finetuner, math.inf)
    of_all = list(rates)
    rates.clear()
    report, _, _ = clock.adapt(finetuner, 3.5)
    assert 0 < report.optimizer_steps < len(of_all) == 12
    assert list(rates) == of_all[: report.optimizer_steps]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("seconds", [2.0, 4.5])
def test_what_ends_early_is_restored(
    gpt2: PreTrainedModel,
    make: Make,
    clock: Time,
    bits: type,
    order: str,
    seconds: float,
) -> None:
    finetuner, before = make(gpt2, order=order), bits(gpt2)
    clock.retrieval = 2.0
    with finetuner.adapted(PROMPT, seconds=seconds) as report:
        assert bool(before.changed()) == (seconds > 2)
    assert before.changed() == set()
    assert all(parameter.grad is None for parameter in gpt2.parameters())
    assert (report.losses == []) == (report.optimizer_steps == 0) == (seconds == 2)
    with finetuner.adapted(PROMPT) as report:
        assert report.optimizer_steps == 12


def test_the_time_counts_from_entering_the_block(
    gpt2: PreTrainedModel, make: Make, clock: Time
) -> None:
    finetuner = make(gpt2, refresh=1)
    block = finetuner.adapted(PROMPT, seconds=3.0)
    for _ in range(2):
        clock.now += 100
        with block as report:
            assert report.forward_backward_passes == 3
    clock.retrieval = 2.0
    support = finetuner.select(PROMPT)
    with finetuner.adapted(support, seconds=3.0) as report:
        assert report.forward_backward_passes == 3
    with finetuner.adapted(PROMPT, seconds=3.0) as report:
        assert report.forward_backward_passes == 1


def test_generating_takes_a_budget_to_adapt(
    gpt2: PreTrainedModel, make: Make, clock: Time
) -> None:
    finetuner = make(gpt2, refresh=1)
    text = finetuner.generate(PROMPT, seconds=3.0, max_new_tokens=4)
    assert len(clock.passes) == 3
    assert isinstance(text, str)


@pytest.mark.parametrize("kind", [np.float32, np.int64, Fraction, int])
def test_any_number_is_a_budget(
    gpt2: PreTrainedModel, make: Make, clock: Time, kind: Callable[[int], float]
) -> None:
    report, _, _ = clock.adapt(make(gpt2, refresh=1), kind(3))
    assert report.forward_backward_passes == 3


@pytest.mark.parametrize(
    ("seconds", "error", "message"),
    [
        (0, ValueError, "above 0, got 0"),
        (-1.5, ValueError, r"above 0, got -1\.5"),
        (math.nan, ValueError, "above 0, got nan"),
        (True, TypeError, "a number, got bool"),
        ("2", TypeError, "a number, got str"),
    ],
)
def test_what_is_no_budget_is_refused(
    gpt2: PreTrainedModel,
    make: Make,
    seconds: object,
    error: type[Exception],
    message: str,
) -> None:
    finetuner = make(gpt2)
    message = f"TestTimeFinetuner: seconds must be {message}"
    with pytest.raises(error, match=message):
        finetuner.adapted(PROMPT, seconds=seconds)
    with pytest.raises(error, match=message):
        finetuner.generate(PROMPT, seconds=seconds)


def test_a_gpu_is_waited_for_before_the_clock_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, waits = 0.0, []

    def wait(device: torch.device) -> None:
        nonlocal now
        waits.append(device)
        now += 1

    monkeypatch.setattr(torch.accelerator, "synchronize", wait)
    monkeypatch.setattr(steps_module, "perf_counter", lambda: now)
    gpu = torch.device("cuda", 1)
    budget = Budget(2.5, [gpu, torch.device("cpu"), gpu])
    assert [budget.allows(8, fresh=True) for _ in range(2)] == [True, False]
    assert waits == [gpu, gpu]
