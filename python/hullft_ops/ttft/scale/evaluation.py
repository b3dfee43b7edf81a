"""Measuring configurations on held-out prompts in several processes."""

from dataclasses import replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from rich.console import Console

from hullft_ops.ttft._progress import progress_bar
from hullft_ops.ttft.evaluation.config import Config, ConfigError, Settings, open_experts
from hullft_ops.ttft.evaluation.corpus import Prompt
from hullft_ops.ttft.evaluation.inputs import Inputs
from hullft_ops.ttft.evaluation.results import ResultsFile, Row
from hullft_ops.ttft.evaluation.runner import Evaluator, missing_pairs
from hullft_ops.ttft.scale.cluster import (
    Workers,
    cluster,
    completed,
    found_anywhere,
    load_model_and_store,
    staff,
)
from hullft_ops.ttft.store.embedding import open_embedder

# A prompt, the settings to measure, and an earlier row of the prompt if there is one.
Task = tuple[Prompt, list[Settings], list[Row]]


class EvaluationWorker:
    """Measures prompts with the driver's model, datastore, embedder and experts."""

    def __init__(self, config: Config, store: Path, run: str, device: str) -> None:
        loaded = load_model_and_store(
            config.model, store, device, allow_missing_weights=config.allow_missing_weights
        )
        embedder, experts = open_embedder(config.embedder), open_experts(config.experts)
        self._evaluator = Evaluator(*loaded, embedder, seed=config.seed, experts=experts)
        self._warm = False
        if self._evaluator.run != run:
            raise ConfigError(
                "a worker has another model, tokenizer, datastore or embedder than the driver "
                f"under the same name (run {self._evaluator.run}, the driver's is {run})"
            )

    def __call__(self, task: Task) -> list[Row]:
        prompt, settings, known = task
        self._evaluator.remember(known)
        if not self._warm:
            self._evaluator.warm_up(prompt, settings[0])
            self._warm = True
        return list(self._evaluator.measure_all(prompt, settings))


def evaluate_on_ray(
    config: Config, inputs: Inputs, results: ResultsFile, workers: Workers, log: Console
) -> None:
    """Add the rows that ``results`` lacks, as workers finish them.

    A worker takes one prompt at a time, with all of its configurations. Except for the seconds,
    rows equal those of a single process with as many threads. A `ConfigError` says that a setting
    is refused or that a prompt cannot be scored. A `ScaleError` says that the cluster is too small,
    or that a prompt kills every worker that takes it.
    """
    evaluator = inputs.evaluator(config.seed)
    evaluator.prepare(config.configurations)
    missing = missing_pairs(inputs.prompts, config.configurations, results)
    if not missing:
        return
    known = {row.prompt: [row] for row in results.rows.values()}
    tasks: list[Task] = [
        (prompt, [settings for _, settings in pairs], known.get(prompt.id, []))
        for prompt, pairs in groupby(missing, key=itemgetter(0))
    ]
    total = len(inputs.prompts) * len(config.configurations)
    store = inputs.store_path.resolve()
    arguments = _found_anywhere(config), store, evaluator.run, workers.device
    with (
        cluster(workers) as count,
        staff(EvaluationWorker, workers, [arguments] * min(count, len(tasks))) as actors,
        progress_bar(log) as bar,
    ):
        bar_task = bar.add_task("evaluating", total=total, completed=total - len(missing))
        for _, rows in completed(actors, tasks):
            for row in rows:
                results.append(row)
                bar.advance(bar_task)


def _found_anywhere(config: Config) -> Config:
    """What a worker reads of the configuration, with absolute paths."""
    return replace(
        config,
        model=config.model and found_anywhere(config.model),
        embedder=found_anywhere(config.embedder),
        experts=config.experts and config.experts.resolve(),
    )
