"""Adapting GPT-2's architecture, with CUDA graphs and without, against plain loops.

The weights are random, the embedder counts trigrams: nothing is downloaded. `bench_ttft.py` times
the loops.
"""

from collections.abc import Iterator
from functools import cached_property, partial
from pathlib import Path

import torch

from benchmarks.bench_ttft import DIFFERENCE, Adapting, Case
from benchmarks.gpu.findings import Findings
from benchmarks.gpu.floors import copy_bytes_per_second, flops_per_second
from benchmarks.gpu.kernels import GRAPH_LAUNCH, attention, launched
from benchmarks.gpu.planted import ADAPTATIONS, plant, repeated
from benchmarks.gpu.tasks import Task
from benchmarks.passages import TrigramEmbedder
from benchmarks.timing import Pace, measure, synchronised

_BYTES_OF_A_STEP = 28  # of one element: four numbers read, three written
_FLOPS_OF_A_PASS = 6  # of one weight and token: a product and a sum, three times


def tasks(
    device: torch.device, *, small: bool, beside: str | None = None
) -> Iterator[Task]:
    if small:
        cases = [Case("gpt2-small", 4, lengths="short", texts=12)]
    else:
        cases = [Case("gpt2", 50), Case("gpt2", 50, dtype="bfloat16")]
    for case in cases:
        measured = Measured(case, device, small)
        trace = None if beside is None else Path(f"{beside}.{case}.trace.json.gz")
        yield f"right {case}", measured.check
        yield f"graphs {case}", partial(measured.check_graphs, trace)
        yield f"time {case}", measured.time
    in_tf32 = Measured(cases[0], device, small, tf32=True)
    yield f"time {cases[0]}, TF32", in_tf32.time
    # Last, because of what they may leave behind.
    for always in (False, True):
        when = "always" if always else "while capturing"
        yield f"a pass that waits {when}", partial(plant, device, always)


class Measured:
    """A case, whose models and stores are made when the first of its tasks runs."""

    def __init__(
        self, case: Case, device: torch.device, small: bool, tf32: bool = False
    ) -> None:
        self._case, self._device, self._small, self._tf32 = case, device, small, tf32
        self._pace = Pace(0.0, 2, 2) if small else Pace(0.5, 3, 20)

    @cached_property
    def _captured(self) -> Adapting:
        """With every pass captured."""
        adapting = Adapting(self._case, self._device, TrigramEmbedder())
        for _ in range(ADAPTATIONS):
            adapting.adapt()
        return adapting

    @cached_property
    def _eager(self) -> Adapting:
        return Adapting(self._case, self._device, TrigramEmbedder(), graphs=False)

    def check(self, findings: Findings) -> None:
        """Against the loops, and with graphs against without."""
        end, repetition = repeated(self._eager)
        findings.fact("repeated without graphs", repetition)
        allowed = max(self._case.allowed_difference, 2 * repetition)
        findings.must(DIFFERENCE, self._captured.difference(), allowed)
        apart = self._captured.apart(self._captured.end(), end)
        findings.must(f"{DIFFERENCE}, without graphs", apart, allowed)

    def check_graphs(self, trace: Path | None, findings: Findings) -> None:
        """Whether passes are replayed, with the attention that they have without graphs."""
        eager = launched(self._eager.adapt, self._device)
        replayed = launched(self._captured.adapt, self._device, trace=trace)
        launches = replayed[GRAPH_LAUNCH].count
        findings.fact("graphs replayed", launches)
        findings.fact("kernels", sum(kernel.count for kernel in replayed.values()))
        if self._device.type == "cuda":
            assert launches, "no graph was replayed"
        assert attention(replayed) == attention(eager), (
            f"the graphs run {attention(replayed)}, not {attention(eager)}"
        )

    def time(self, findings: Findings) -> None:
        precision = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if self._tf32 else "highest")
        try:
            call = synchronised(self._captured.adapt, self._device)
            seconds = measure(call, self._pace)
            with self._eager.finetuner.adapted(self._eager.prompt) as adaptation:
                stages = dict(adaptation.seconds)
        finally:
            torch.set_float32_matmul_precision(precision)
        findings.fact("seconds of the stages, without graphs", stages)
        text = f"TTFT {self._case}{', TF32' * self._tf32}"
        findings.speed(text, seconds, self._floor(findings))
        findings.fact("passes", adaptation.passes)

    def _floor(self, findings: Findings) -> float:
        """All products at the rate of torch's largest, and all sweeps at that of a copy."""
        support = self._eager.finetuner.select(self._eager.prompt)
        weights = sum(p.numel() for p in self._eager.model.parameters())
        passes = [-(-count // self._case.refresh) for count in support.counts]
        texts = zip(passes, support.input_ids, strict=True)
        tokens = sum(count * len(text) for count, text in texts)
        dtype = torch.bfloat16 if self._case.dtype else torch.float32
        rate = flops_per_second(self._device, dtype, self._tf32, self._small)
        bandwidth = copy_bytes_per_second(self._device, self._small)
        findings.fact("TFLOP/s of torch's largest product", rate / 1e12)
        findings.fact("GB/s of a copy", bandwidth / 1e9)
        swept = _BYTES_OF_A_STEP * weights * sum(passes)
        return _FLOPS_OF_A_PASS * weights * tokens / rate + swept / bandwidth
