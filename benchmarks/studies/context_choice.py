"""Which passages to read: the nearest, or some that are near the prompt and unlike each other.

    hullft-ops evaluate --config benchmarks/results/answer/c_choice.json --output c_choice.jsonl
    python -m benchmarks.studies.context_choice \\
        benchmarks/results/answer/c_choice.json --output c_choice.jsonl

measures the nearest, and then each other choice on the same prompts, without a step.
`benchmarks.studies.pairs` reads the rows. A killed run goes on.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import hullft_ops
from benchmarks.peers import pyversity_select
from hullft_ops.evaluation.experiment import read_experiment
from hullft_ops.evaluation.measuring import load_evaluation, measure
from hullft_ops.evaluation.results import open_results
from hullft_ops.ttft.store.base import Store

STEPS = 50
# Of the pool [K, d] of a query [d], the n positions to read first, the most important first.
Choose = Callable[[Tensor, Tensor, int], list[int]]


def heaviest(pool: Tensor, query: Tensor, n: int) -> list[int]:
    """The passages of the hull by weight."""
    selection = hullft_ops.fw_select(pool, query, n_select=STEPS)
    positions: list[int] = selection.indices[: int(selection.support_size)].tolist()
    return positions[:n]


def mmr(pool: Tensor, query: Tensor, n: int) -> list[int]:
    positions: list[int] = pyversity_select("MMR", pool, query, n).tolist()
    return positions


def dpp(pool: Tensor, query: Tensor, n: int) -> list[int]:
    positions: list[int] = pyversity_select("DPP", pool, query, n).tolist()
    return positions


CHOICES: dict[str, Choose] = {"hull": heaviest, "mmr": mmr, "dpp": dpp}


class ChoosingStore:
    """A store whose search puts n chosen passages first, and behind them the nearest."""

    def __init__(self, store: Store, choose: Choose, n: int) -> None:
        self._store = store
        self._choose = choose
        self._n = n

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def __len__(self) -> int:
        return len(self._store)

    def search(self, queries: Any, k: int) -> tuple[Tensor, Tensor]:
        scores, nearest = self._store.search(queries, k)
        pool = self._store.embeddings[nearest[0]]
        chosen = self._choose(pool, torch.as_tensor(queries)[0], self._n)
        others = [position for position in range(k) if position not in chosen]
        order = [*chosen, *others]
        return scores[:, order], nearest[:, order]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("experiment", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    evaluation = load_evaluation(read_experiment(arguments.experiment))
    with open_results(arguments.output, evaluation.run) as results:
        for prompt, nearest, name in product(
            evaluation.prompts, evaluation.configs, CHOICES
        ):
            config = f"{nearest} {name}"
            if (prompt.id, config) in results.rows:
                continue
            n = evaluation.configs[nearest].context
            store: Any = ChoosingStore(evaluation.store, CHOICES[name], n)
            chosen = replace(evaluation, store=store)
            for row in measure(chosen, (prompt, [nearest])):
                results.append(row.model_copy(update={"config": config}))


if __name__ == "__main__":
    main()
