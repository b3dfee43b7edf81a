"""Training for a prompt with CUDA graphs and without, and a profiler's trace of one prompt."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.bench_ttft import LR, Case, autocast_of
from benchmarks.gpu.goals import goal
from benchmarks.gpu.ttft import random_gpt2, random_support
from benchmarks.recorder import Recorder
from benchmarks.timing import Comparison, Pace, synchronised
from hullft_ops.ttft.model.snapshot import ModelSnapshot
from hullft_ops.ttft.training.checks import trainable_parameters
from hullft_ops.ttft.training.steps import StageClock
from hullft_ops.ttft.training.trainer import SupportTrainer

_DIFFERENCE, _MILLISECONDS, _GRAPHS = (
    "parameter difference, relative",
    "ms a prompt",
    "graphs",
)
_ALLOWED = 1e-6
_GOALS = {None: 200.0, "bfloat16": 100.0}  # milliseconds


def run(
    device: torch.device, *, small: bool, beside: str | None = None
) -> Iterator[dict[str, Any]]:
    pace = Pace(0.0, 2, 2) if small else Pace(2.0, 5, 20)
    model = random_gpt2(device, small)
    case = (
        Case("gpt2", 4, lengths="short", texts=4)
        if small
        else Case("gpt2", 50, texts=50)
    )
    found: dict[str, Any] = {"comparisons": [], "goals": []}
    for dtype in (None,) if small else (None, "bfloat16"):
        typed = replace(case, dtype=dtype)
        comparison = Comparison("passes", str(typed), asdict(typed))
        prompts = {graphs: _Prompt(model, typed, graphs) for graphs in (True, False)}
        _measure(prompts, Recorder(None, device, pace, comparison))
        found["comparisons"].append(asdict(comparison))
        found["goals"].append(goal(comparison, _DIFFERENCE, _ALLOWED))
        if not small:
            found["goals"].append(goal(comparison, _MILLISECONDS, _GOALS[dtype]))
            found["goals"].append(goal(comparison, _GRAPHS, 1, at_least=True))
        yield found
    if beside is not None:
        trace = Path(f"{beside}.trace.json.gz")
        _write_trace(prompts[True], trace)
        yield found | {"trace": trace.name}


class _Prompt:
    """Training on one support, from saving to restoring."""

    def __init__(self, model: Any, case: Case, graphs: bool) -> None:
        self._support = random_support(case, model.config.vocab_size)
        self._refreshes = [case.refresh] * len(self._support.counts)
        self._trained = trainable_parameters(model)
        self.device = model.device
        self._snapshot = ModelSnapshot(model, self._trained)
        self.trainer = SupportTrainer(
            model, self._trained, lr=LR, order="grouped", schedule="constant", max_grad_norm=None,
            autocast=autocast_of(case), graphs=graphs,
        )  # fmt: skip

    @contextmanager
    def adapted(self) -> Iterator[None]:
        support = self._support
        self._snapshot.save()
        self.trainer.train(
            support.input_ids, support.indices, support.counts, self._refreshes,
            StageClock(self.device),
        )  # fmt: skip
        yield
        self._snapshot.restore()

    def adapt(self) -> None:
        with self.adapted():
            pass

    @property
    def captured(self) -> int:
        graphs = self.trainer.pass_graphs
        return 0 if graphs is None else graphs.count

    def end(self) -> list[torch.Tensor]:
        """Copies of the trained parameters after the last step."""
        with self.adapted():
            return [parameter.detach().clone() for parameter in self._trained]


def _measure(prompts: dict[bool, _Prompt], recorder: Recorder) -> None:
    replayed, eager = prompts[True], prompts[False]
    replayed.adapt()  # captures
    end = eager.end()
    recorder.fact(_DIFFERENCE, _apart(replayed.end(), end))
    # torch's attention may add up in another order, and then Adam goes another way.
    recorder.fact(
        "parameter difference of a repetition, relative", _apart(eager.end(), end)
    )
    recorder.fact(_GRAPHS, replayed.captured)
    recorder.ours(replayed.adapt)
    recorder.peer("without graphs", eager.adapt)
    recorder.fact(_MILLISECONDS, 1e3 * recorder.comparison.seconds)


def _apart(some: list[torch.Tensor], others: list[torch.Tensor]) -> float:
    off = [(one - other).norm() for one, other in zip(some, others, strict=True)]
    return float(
        torch.stack(off).norm() / torch.stack([other.norm() for other in others]).norm()
    )


def _write_trace(prompt: _Prompt, path: Path) -> None:
    """A trace for chrome://tracing, compressed because the name ends with ``.gz``."""
    activities = [ProfilerActivity.CPU]
    if prompt.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        synchronised(prompt.adapt, prompt.device)()
    profiler.export_chrome_trace(str(path))
