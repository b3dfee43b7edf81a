"""What decides whether HullFT is ahead of kNN, on the model that ships with the package.

    python -m benchmarks.what_decides benchmarks/results/what_decides/grid.json \\
        --output benchmarks/results/what_decides/rows.jsonl --page docs/results/what_decides.md

runs the settings as ``hullft-ops evaluate`` does, and knows the methods of `CONTROLS` besides. Rows
that are there do not run again. ``moved.jsonl`` beside the rows says how far each adaptation moved
the model. Then it fills the tables of the page; without a configuration it does only that.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any, ClassVar
from unittest import mock

import torch
from torch import Tensor

from benchmarks.tables import filled as fill_tables
from hullft_ops import Selection, fw_select_indexed, knn_select
from hullft_ops.ttft.evaluation import runner
from hullft_ops.ttft.evaluation.config import (
    Settings,
    expand_grid,
    finetuner_options,
    read_config,
)
from hullft_ops.ttft.evaluation.results import Row, open_results, read_rows
from hullft_ops.ttft.evaluation.statistics import Measurements
from hullft_ops.ttft.experts.folder import Experts
from hullft_ops.ttft.finetuner import TestTimeFinetuner
from hullft_ops.ttft.model.scoring import BitsPerByte

COPIES = 3
# An interval over fewer says nothing.
LEAST_PROMPTS = 5
Moves = dict[tuple[str, str], float]


def knn_of_copies(x: Tensor, candidates: Tensor, q: Tensor, n_select: int) -> Selection:
    """kNN in a datastore that has every text `COPIES` times: that many steps on the nearest."""
    found = knn_select(x[candidates], q, n_select)
    first = torch.arange(n_select) * COPIES
    return found._replace(
        counts=(n_select - first).clamp(0, COPIES).expand_as(found.counts)
    )


def knn_farthest_first(
    x: Tensor, candidates: Tensor, q: Tensor, n_select: int
) -> Selection:
    """kNN with its texts the other way round."""
    return _reversed(knn_select(x[candidates], q, n_select))


def hull_lightest_first(
    x: Tensor, candidates: Tensor, q: Tensor, n_select: int
) -> Selection:
    """HullFT with its texts the other way round."""
    return _reversed(fw_select_indexed(x, candidates, q, n_select))


def knn_without_nearest(
    x: Tensor, candidates: Tensor, q: Tensor, n_select: int
) -> Selection:
    """kNN in a datastore without the nearest text."""
    found = knn_select(x[candidates[:, 1:]], q, n_select)
    return found._replace(indices=found.indices + 1)


def hull_without_nearest(
    x: Tensor, candidates: Tensor, q: Tensor, n_select: int
) -> Selection:
    """HullFT in a datastore without the nearest text."""
    found = fw_select_indexed(x, candidates[:, 1:].contiguous(), q, n_select)
    return found._replace(indices=torch.where(found.indices < 0, -1, found.indices + 1))


CONTROLS: dict[str, Callable[[Tensor, Tensor, Tensor, int], Selection]] = {
    made.__name__: made
    for made in (
        knn_of_copies,
        knn_farthest_first,
        hull_lightest_first,
        knn_without_nearest,
        hull_without_nearest,
    )
}


def _name(
    method: str,
    n: int = 20,
    refresh: int = 1,
    lr: float = 2e-4,
    more: str = " max_length=128",
) -> str:
    return f"{method} n={n} refresh={refresh} lr={lr}{more}"


SIFT = _name("sift", more=" max_length=128 noise=0.2")
SHORT = " max_length=64"
# The pool of 200 then has 67 different texts, and the hull needs one copy of each.
OF_COPIES = _name("hullft", more=" max_length=128 pool_size=67")
# The tables of the page. A line is what it says, a configuration, and its rival.
TABLES: dict[str, list[tuple[str, str, str]]] = {
    "base": [
        ("HullFT, kNN", _name("hullft"), _name("knn")),
        ("SIFT, kNN", SIFT, _name("knn")),
        ("HullFT, SIFT", _name("hullft"), SIFT),
    ],
    "rate": [
        ("5e-5", _name("hullft", lr=5e-5), _name("knn", lr=5e-5)),
        ("2e-4", _name("hullft"), _name("knn")),
        ("8e-4", _name("hullft", lr=8e-4), _name("knn", lr=8e-4)),
    ],
    "rates": [
        ("HullFT, 5e-5 against 2e-4", _name("hullft", lr=5e-5), _name("hullft")),
        ("HullFT, 8e-4 against 2e-4", _name("hullft", lr=8e-4), _name("hullft")),
        ("kNN, 5e-5 against 2e-4", _name("knn", lr=5e-5), _name("knn")),
        ("kNN, 8e-4 against 2e-4", _name("knn", lr=8e-4), _name("knn")),
    ],
    "steps": [
        ("5", _name("hullft", 5), _name("knn", 5)),
        ("20", _name("hullft"), _name("knn")),
    ],
    "time": [
        ("refresh 1, kNN 20 steps", _name("hullft"), _name("knn")),
        ("refresh 2, kNN 20 steps", _name("hullft", refresh=2), _name("knn")),
        ("refresh 2, kNN 15 steps", _name("hullft", refresh=2), _name("knn", 15)),
    ],
    "length": [
        ("64 tokens", _name("hullft", more=SHORT), _name("knn", more=SHORT)),
        ("128 tokens", _name("hullft"), _name("knn")),
    ],
    "copies": [
        ("kNN with copies, kNN without", _name("knn_of_copies"), _name("knn")),
        ("HullFT with copies, HullFT without", OF_COPIES, _name("hullft")),
        ("HullFT, kNN, both with copies", OF_COPIES, _name("knn_of_copies")),
    ],
    "document": [
        ("held out", _name("hullft"), _name("knn")),
        (
            "in the datastore",
            _name("hull_without_nearest"),
            _name("knn_without_nearest"),
        ),
    ],
    "order": [
        ("HullFT, lightest first", _name("hull_lightest_first"), _name("hullft")),
        ("kNN, farthest first", _name("knn_farthest_first"), _name("knn")),
        ("both reversed", _name("hull_lightest_first"), _name("knn_farthest_first")),
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("configs", type=Path, nargs="*")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--page", type=Path)
    given = parser.parse_args()
    moves = given.output.with_name("moved.jsonl")
    for config in given.configs:
        run(config, given.output, moves)
    if given.page:
        page = given.page.read_text(encoding="utf-8")
        made = filled(page, read_rows(given.output), read_moves(moves))
        given.page.write_text(made, encoding="utf-8")


def run(path: Path, output: Path, moves: Path) -> None:
    """Add the rows that ``output`` lacks, setting by setting."""
    config = read_config(path)
    inputs = runner.open_inputs(config)
    evaluator = inputs.evaluator
    with (
        mock.patch.multiple(
            runner, finetuner_options=_options, TestTimeFinetuner=Watched
        ),
        open_results(output, evaluator.run) as results,
        moves.open("a", encoding="utf-8") as moved,
    ):
        evaluator.prepare((), results.rows.values())
        for axes in config.settings:
            settings = expand_grid([axes], config.model)
            for prompt, missing in runner.missing_tasks(
                inputs.prompts, settings, results
            ):
                for row in evaluator.measure_all(prompt, missing):
                    own = {
                        "prompt": row.prompt,
                        "config": row.config,
                        "moved": Watched.moved,
                    }
                    moved.write(json.dumps(own) + "\n")
                    moved.flush()
                    results.append(row)


class Watched(TestTimeFinetuner):
    """Notes how far the blocks' weights have moved when a prompt is scored, in learning rates."""

    base: ClassVar[list[Tensor]] = []
    moved: ClassVar[float] = 0.0

    def __init__(self, *inputs: Any, **settings: Any) -> None:
        super().__init__(*inputs, **settings)
        self._lr = settings["lr"]
        # The first one is made before anything moves.
        Watched.base = Watched.base or [
            weight.detach().clone() for weight in self._blocks()
        ]

    def score_text(self, text: str) -> BitsPerByte:
        pairs = zip(self._blocks(), self.base, strict=True)
        square = sum(float((now.detach() - then).square().sum()) for now, then in pairs)
        Watched.moved = (
            square / sum(then.numel() for then in self.base)
        ) ** 0.5 / self._lr
        return super().score_text(text)

    def _blocks(self) -> list[Tensor]:
        # Every text trains all of the blocks, and only its own rows of the embedding.
        return [
            weight for name, weight in self.model.named_parameters() if ".h." in name
        ]


def filled(page: str, rows: Sequence[Row], moves: Moves) -> str:
    """The page with its tables made from the rows."""
    return fill_tables(page, lambda name, _: table(name, rows, moves))


def table(name: str, rows: Sequence[Row], moves: Moves) -> str:
    """The table with that name in `TABLES`. Each line takes the prompts that both ran on."""
    lines = [
        "| | prompts | bits per byte | difference | median | fewer bits on | passes | moved |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for said, *pair in TABLES[name]:
        ran = [{row.prompt for row in rows if row.config == config} for config in pair]
        if len(set.intersection(*ran)) < LEAST_PROMPTS:
            continue
        both = Measurements.of([row for row in rows if row.config in pair])
        change = both.relative_bits(*pair)
        each = both.bits_of(pair[0]) / both.bits_of(pair[1]) - 1
        means = (
            [f"{both.mean_bits(config):.3f}" for config in pair],
            [f"{both.mean_of(config, 'passes'):.1f}" for config in pair],
            [f"{fmean(moves[p, config] for p in both.prompts):.1f}" for config in pair],
        )
        bits, passes, moved = map(", ".join, means)
        cells = (
            said,
            str(len(both.prompts)),
            bits,
            f"{change:+.1%}",
            f"{median(each):+.1%}",
            str(both.prompts_below(*pair)),
            passes,
            moved,
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def read_moves(path: Path) -> Moves:
    lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {(line["prompt"], line["config"]): line["moved"] for line in lines}


def _options(
    settings: Settings, seed: int, experts: Experts | None = None
) -> dict[str, Any]:
    options = finetuner_options(settings, seed, experts)
    return options | {"method": CONTROLS.get(settings["method"], options["method"])}


def _reversed(found: Selection) -> Selection:
    """The support from its end to its beginning."""
    places = torch.arange(found.indices.shape[1]).expand_as(found.indices)
    size = found.support_size[:, None]
    order = torch.where(places < size, size - 1 - places, places)
    indices, weights, counts = (
        part.gather(1, order) for part in (found.indices, found.weights, found.counts)
    )
    return found._replace(indices=indices, weights=weights, counts=counts)


if __name__ == "__main__":
    main()
