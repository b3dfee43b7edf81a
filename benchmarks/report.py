"""The results as a Markdown page."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.bench_experts import ADDMM
from benchmarks.bench_replay import TIMES_ONE_STEP
from benchmarks.pools import DISTINCT, REAL_DIM
from benchmarks.results import Results
from benchmarks.timing import Comparison, format_seconds
from hullft_ops.ttft._files import replacing

_INTRODUCTION = """\
Medians. Ours and its peers are measured in the same run, with the same number of threads, after
the answer has been checked against the reference or the peer. A peer's cell says how many times
longer it takes. The sweep is a reference: torch's plain passes over the same bytes, one after the
other (a maximum where ours reads, zeros where it writes, a change of sign where it does both). It
is no lower limit: where ours is faster, "times the sweep" is below 1.
Ours takes turns with each peer and with the sweep, some calls each, and the ratio is the median
over the turns: for seconds at a time a machine may be slower, and then both are. The times beside
a ratio are medians of their own.

- NumPy: the published method in NumPy, written from its description (`benchmarks/peers.py`).
- torch, Gram: the same method done well in torch for a whole batch, from the candidates' Gram
  matrices (`benchmarks/peers.py`); counts come from NumPy, Gram for each query. Like NumPy it is
  checked in float64 and timed in float32.
- activeft SIFT: activeft's acquisition function within this process; activeft Retriever: as its
  documentation uses it, with a data-loader process for each query. Beside `fw_select` it is another
  method for the same task, beside `sift_select` the same one.
- Peers that take queries one by one are timed on some of a large batch, at least 8, or 1 for
  activeft and nnls.
- padded loop and torch loop: see the table of ttft. Each runs in a process of its own with the C
  library's default allocation, after ours and not in turns with it; ours runs after
  `keep_freed_memory()`.
- Adam runs after `keep_freed_memory()`, torch's too, so that all have the same pages; from 200 M
  parameters on one after the other, for want of memory for two.
- parameter-sized buffers: resident memory of an adaptation at its peak, in a process of its own,
  without the activations of a pass (`benchmarks/memory.py`).
- 200 candidates of 384 dimensions are embeddings of real text; other sizes are grown from them
  (`benchmarks/pools.py`).
"""

_GOALS_NOTE = f"""\
Real pools are embeddings of text in {REAL_DIM} dimensions. Widened ones are the same, put through a
random isometry into d dimensions, with a little Gaussian noise. There are {DISTINCT} different
pools: 64 are these {DISTINCT}, repeated {64 // DISTINCT} times, each in memory of its own.
"""

# What a reader must know to understand a group's table.
_NOTES = {
    "many": """\
LoRAs of rank 8 on all linear layers but the head, one for each of B prompts, 10 steps each. Ours
trains them side by side (`adapt_many`), the peer one after the other (`adapted`). Both embed,
search and select. The peer is timed on one or two of the B prompts, and scaled by the tokens that
the training on all of them reads.
""",
    "experts": """\
Experts (LoRA) are merged into a Llama's linear layers, 30 of width 576 as in SmolLM2-135M. The
peer's factors are concatenated and scaled before its time is taken; ours looks them up and does
both.
""",
    "ttft": """\
The padded loop pads every passage, of about 300 tokens in the cases named 300, to all positions of
the model (1024 of GPT-2, 512 of the tiny one), computes in float32 whatever ours does, and clones
gradients. The torch loop leaves passages at their own length, steps with torch's fused Adam, copies
no gradient, and computes in the dtype of ours (bfloat16 by autocast). Both take the steps of the
published method on our selection and do nothing else (`benchmarks/loops.py`); ours also searches,
selects and restores. GPT-2 is its architecture with random weights. Parameter differences are
between ours and the loop that ends farther from it.
""",
}


@dataclass(frozen=True)
class Goal:
    """A target: at least ``wanted``, or at most ``wanted``."""

    text: str
    wanted: float
    at_least: bool
    measured: float

    @property
    def met(self) -> bool:
        return (
            self.measured >= self.wanted
            if self.at_least
            else self.measured <= self.wanted
        )


def goals(results: Results) -> list[Goal]:
    """The goals of a CPU run whose cases were measured."""
    return [
        *_selection_goals(results),
        *_sift_goals(results),
        *_replay_goals(results),
        *_experts_goals(results),
        *_ttft_goals(results),
    ]


def _selection_goals(results: Results) -> Iterator[Goal]:
    wanted = {(64, 384): 150.0, (64, 1024): 120.0, (1, 384): 80.0, (1, 1024): 60.0}
    for (batch, dim), ratio in wanted.items():
        found = _selection(results, batch, dim)
        if found:
            text = f"selection, {_pools(batch, dim)}, N = 50: times NumPy"
            yield Goal(text, ratio, True, found.ratio("NumPy"))
            if "torch, Gram" in found.peers:
                text = f"the same, B = {batch}, d = {dim}: times torch, Gram"
                yield Goal(text, 1.0, True, found.ratio("torch, Gram"))
    for dim in (384, 1024):
        if found := _selection(results, 64, dim):
            for peer in ("activeft SIFT", "activeft Retriever"):
                yield Goal(
                    f"the same, d = {dim}: times {peer}",
                    1000.0,
                    True,
                    found.ratio(peer),
                )
    found = _selection(results, 64, 1024)
    if found and found.times_roofline is not None:
        text = f"selection, {_pools(64, 1024)}: times reading them once"
        yield Goal(text, 4.5, False, found.times_roofline)


def _pools(batch: int, dim: int) -> str:
    kind = "real" if dim == REAL_DIM else "widened"
    return f"{batch} {kind} {'pool' if batch == 1 else 'pools'}, K = 200, d = {dim}"


def _selection(results: Results, batch: int, dim: int) -> Comparison | None:
    return results.find(
        "selection",
        batch=batch,
        candidates=200,
        dim=dim,
        n_select=50,
        dtype="float32",
        variant="vanilla",
    )


def _sift_goals(results: Results) -> Iterator[Goal]:
    for batch, dim in ((64, 384), (1, 384), (64, 1024), (1, 1024)):
        case = {
            "batch": batch,
            "candidates": 200,
            "dim": dim,
            "n_select": 50,
            "noise": 0.01,
        }
        if found := results.find("sift", dtype="float32", **case):
            text = f"SIFT, {_pools(batch, dim)}, N = 50: times activeft SIFT"
            yield Goal(text, 200.0, True, found.ratio("activeft SIFT"))


def _experts_goals(results: Results) -> Iterator[Goal]:
    if found := results.find("experts", layers=30, hidden=576, experts=4, rank=16):
        text = "merging 4 experts of rank 16 into 135 M parameters: times one addmm_ a weight"
        yield Goal(text, 1.3, False, 1 / found.ratio(ADDMM))


def _replay_goals(results: Results) -> Iterator[Goal]:
    one = results.find("replay", gpt2=True, repeats=1)
    four = results.find("replay", gpt2=True, repeats=4)
    if four and TIMES_ONE_STEP in four.facts:
        text = "replay, 124 M parameters: four steps against one"
        yield Goal(text, 1.25, False, four.facts[TIMES_ONE_STEP])
    for found, wanted in ((four, 3.0), (one, 1.0)):
        if found:
            text = f"replay, 124 M parameters, {found.case['repeats']} steps: times fused torch"
            yield Goal(text, wanted, True, found.ratio("torch fused"))


def _ttft_goals(results: Results) -> Iterator[Goal]:
    case = {"model": "gpt2", "n_select": 20, "refresh": 2, "lengths": "300"}
    for dtype, ratio in ((None, 5.0), ("bfloat16", 8.0)):
        if found := results.find("ttft", dtype=dtype, **case):
            name = f"GPT-2 in {dtype or 'float32'}, N = 20"
            yield Goal(
                f"{name}: times the padded loop",
                ratio,
                True,
                found.ratio("padded loop"),
            )
            if "torch loop" in found.peers:
                yield Goal(
                    f"{name}: times the torch loop",
                    1.0,
                    True,
                    found.ratio("torch loop"),
                )
            buffers = found.facts["parameter-sized buffers"]
            yield Goal(f"{name}: parameter-sized buffers", 5.0, False, buffers)


def write_page(results: Results, path: Path, plot: str | None) -> None:
    """Writes the page; the file appears whole or not at all."""
    parts = ["# Benchmarks", _setting(results), _INTRODUCTION]
    if results.device == "cpu" and (reached := goals(results)):
        parts += ["## Goals", _GOALS_NOTE, _goal_table(reached)]
    for group in results.groups:
        parts.append(f"## {group.capitalize()}")
        if note := _NOTES.get(group):
            parts.append(note)
        parts.append(_group_table(results.group(group)))
    if plot is not None:
        parts += ["## How cost grows", f"![Time along each axis]({plot})"]
    with replacing(path) as temporary:
        temporary.write_text(
            "\n\n".join(part.strip() for part in parts) + "\n", encoding="utf-8"
        )


def _setting(results: Results) -> str:
    versions = results.environment["versions"]
    shown = ", ".join(
        f"{name} {version}" for name, version in versions.items() if version
    )
    gpus = [gpu["name"] for gpu in results.environment["cuda_devices"]]
    lines = [
        f"- device: {results.device}" + (f" ({', '.join(gpus)})" if gpus else ""),
        f"- processor: {results.environment['processor']}, {results.threads} threads, "
        f"{results.environment['cpu']['simd']}",
        f"- versions: {shown}",
        f"- commit: {results.commit}; grid: {results.grid}; {results.date}",
    ]
    return "\n".join(lines)


def _goal_table(reached: list[Goal]) -> str:
    rows = [
        [
            goal.text,
            f"{'at least' if goal.at_least else 'at most'} {goal.wanted:g}",
            f"{goal.measured:.3g}",
            "yes" if goal.met else "no",
        ]
        for goal in reached
    ]
    return _table(["goal", "wanted", "measured", "met"], rows)


def _group_table(comparisons: list[Comparison]) -> str:
    peers = list(dict.fromkeys(peer for c in comparisons for peer in c.peers))
    facts = list(dict.fromkeys(fact for c in comparisons for fact in c.facts))
    columns: dict[str, Callable[[Comparison], str]] = {
        "case": lambda c: c.name,
        "ours": lambda c: format_seconds(c.seconds),
    }
    for peer in peers:
        columns[peer] = lambda c, peer=peer: _times(c, peer)  # type: ignore[misc]
    if any(c.roofline for c in comparisons):
        columns["GB/s"] = lambda c: _number(c.gigabytes_per_second)
        columns["times the sweep"] = lambda c: _number(c.times_roofline)
    for fact in facts:
        columns[fact] = lambda c, fact=fact: _number(c.facts.get(fact))  # type: ignore[misc]
    rows = [[cell(c) for cell in columns.values()] for c in comparisons]
    return _table(list(columns), rows)


def _times(comparison: Comparison, peer: str) -> str:
    if peer not in comparison.peers:
        return ""
    return f"{comparison.ratio(peer):.3g}x ({format_seconds(comparison.peers[peer].seconds)})"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _table(headings: list[str], rows: list[list[str]]) -> str:
    rule = ["---"] + ["---:"] * (len(headings) - 1)
    return "\n".join(f"| {' | '.join(row)} |" for row in (headings, rule, *rows))
