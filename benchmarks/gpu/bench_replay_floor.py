"""``ReplayAdam.step(repeats=r)`` as a CUDA graph beside a copy of as many bytes.

From Python, steps on many tensors take the host about as long as the device, unlike a copy.
`bench_replay.py` checks the results and compares with torch's optimizers.
"""

import torch

from benchmarks import parameters
from benchmarks.bench_replay import Case
from benchmarks.gpu.floors import copy_bytes_per_second
from benchmarks.gpu.graph import REPLAYS, Graph
from benchmarks.recorder import Recorder
from benchmarks.timing import measure, synchronised
from hullft_ops import ReplayAdam


def cases(smoke: bool) -> list[Case]:
    if smoke:
        return [Case(2, 3, 3000, gpt2=False)]
    return [Case(repeats) for repeats in (1, 2, 4, 8)]


def test_replay_floor(case: Case, recorder: Recorder, device: torch.device) -> None:
    params = parameters.random_tensors(case.shapes(), 0.02, device, seed=0)
    for param in params:
        param.grad = torch.full_like(param, 1e-3)
    optimizer = ReplayAdam(params, lr=5e-5, capturable=True)

    def step() -> list[torch.Tensor]:
        optimizer.step(repeats=case.repeats)
        return params

    graph = Graph(step, device)
    recorder.ours(graph.replay_in_a_row, calls=REPLAYS)
    rate = case.bytes_moved / recorder.comparison.seconds
    recorder.fact("GB/s", rate / 1e9)
    recorder.fact("floor / time", rate / copy_bytes_per_second(device))
    recorder.fact("us eager", 1e6 * measure(synchronised(step, device), recorder.pace))
