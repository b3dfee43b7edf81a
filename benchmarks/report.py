"""A Markdown page of a run: ``python -m benchmarks.report FILE.json``, to standard output.

FILE.json comes from ``pytest benchmarks --benchmark-json FILE.json``.
"""

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from benchmarks.compare import comparisons_of
from benchmarks.recorder import Comparison, format_seconds

_INTRODUCTION = """\
Medians. Ours is checked against the reference or a peer before it is timed; floors and single
kernels rest on the tests in `benchmarks/gpu`. Ours takes turns with each peer, some calls each, in
one process with the same number of threads. A peer's cell says how many times longer it takes (the
median over the turns), then its median in brackets.

- NumPy: the published method in NumPy, written from its description. NumPy, Gram and torch, Gram:
  the same method done well, from the candidates' Gram matrices. torch: the same in a few calls.
- activeft SIFT: activeft's acquisition function. Beside `fw_select` it is another method for the
  same task, beside `sift_select` the same one. pyversity's methods are others for that task too.
- SciPy nnls: over the simplex, with a heavy equation for the sum. torch FISTA: batched accelerated
  projected gradient, told when its squared residuals are within 1e-6 of the minimum, 2,000 steps at
  most. The excess of a squared residual is relative.
- Peers that take queries one by one are timed on a few of a large batch, other methods on one.
- In older runs, sweep: torch's plain passes over the bytes that ours must move. pairwise: ours by
  pairwise steps, 2,000 at most.
- padded loop: a loop like the published one, which pads to all positions of the model and clones
  gradients, in float32. torch loop: without padding, with torch's fused Adam, in the dtype of ours.
  Both get our selection and only train and restore; ours embeds, searches and selects too.
"""


def page(run: dict[str, Any]) -> str:
    """The page, from the contents of pytest-benchmark's file.

    Raises:
        ValueError: no case was measured.
    """
    comparisons = list(comparisons_of(run).values())
    if not comparisons:
        raise ValueError("no case was measured")
    parts = ["# Benchmarks", _setting(run), _INTRODUCTION.strip()]
    for group in dict.fromkeys(comparison.group for comparison in comparisons):
        members = [c for c in comparisons if c.group == group]
        parts += [f"## {group.replace('_', ' ').capitalize()}", _table(members)]
    return "\n\n".join(parts)


def tests_page(suites: Element) -> str:
    """A table of the suites in JUnit's XML, the failed tests, and why others were skipped."""
    rows = [
        "| file | tests | failed | skipped | seconds |",
        "|---|---:|---:|---:|---:|",
    ]
    failures: list[str] = []
    reasons: Counter[str] = Counter()
    for suite in suites:
        counts: Counter[str] = Counter()
        for case in suite.iter("testcase"):
            counts["tests"] += 1
            for outcome in case:
                message = outcome.get("message", "").partition("\n")[0]
                if message in ("collection failure", "collection skipped"):
                    message = (outcome.text or message).strip().splitlines()[-1]
                if outcome.tag == "skipped":
                    counts["skipped"] += 1
                    reasons[message] += 1
                elif outcome.tag in ("failure", "error"):
                    counts["failed"] += 1
                    failures.append(
                        f"{case.get('classname')} {case.get('name')}: {message}"
                    )
        numbers = [str(counts[name]) for name in ("tests", "failed", "skipped")]
        seconds = f"{float(suite.get('time', 0)):.0f}"
        rows.append(f"| {' | '.join([suite.get('name', ''), *numbers, seconds])} |")
    parts = ["# Tests", "\n".join(rows)]
    if failures:
        parts += ["## Failed", "\n".join(f"- {failure}" for failure in failures)]
    if reasons:
        skipped = [f"- {count}: {reason}" for reason, count in reasons.most_common()]
        parts += ["## Skipped", "\n".join(skipped)]
    return "\n\n".join(parts)


def _setting(run: dict[str, Any]) -> str:
    machine, commit = run["machine_info"], run["commit_info"]
    changed = ", with changes" if commit["dirty"] else ""
    lines = [
        f"- processor: {machine['cpu'].get('brand_raw', 'unknown')}, "
        f"{machine['threads']} threads, {machine['simd']}",
        *(f"- GPU: {gpu}" for gpu in machine.get("gpu", ())),
        f"- versions: torch {machine['torch']}, Python {machine['python_version']}",
        f"- commit: {commit['id']}{changed}; {run['datetime']}",
    ]
    return "\n".join(lines)


def _table(comparisons: list[Comparison]) -> str:
    peers = dict.fromkeys(peer for c in comparisons for peer in c.peers)
    facts = dict.fromkeys(fact for c in comparisons for fact in c.facts)
    headings = ["case", "ours", *peers, *facts]
    lines = [headings, ["---"] + ["---:"] * (len(headings) - 1)]
    for comparison in comparisons:
        cells = [comparison.case, format_seconds(comparison.seconds)]
        cells += [_against(comparison, peer) for peer in peers]
        cells += [_number(comparison.facts.get(fact)) for fact in facts]
        lines.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _against(comparison: Comparison, peer: str) -> str:
    if peer not in comparison.peers:
        return ""
    seconds = format_seconds(comparison.peers[peer])
    return f"{comparison.ratios[peer]:.3g}x ({seconds})"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report", description=__doc__
    )
    parser.add_argument("file", type=Path)
    file = parser.parse_args().file
    print(page(json.loads(file.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
