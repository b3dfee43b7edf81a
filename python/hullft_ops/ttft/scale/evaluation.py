"""Measuring configurations on held-out prompts in several processes."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

from rich.console import Console

from hullft_ops.ttft._progress import progress_bar
from hullft_ops.ttft.evaluation.config import Config, ConfigError, Settings, open_experts
from hullft_ops.ttft.evaluation.corpus import Prompt
from hullft_ops.ttft.evaluation.inputs import Inputs
from hullft_ops.ttft.evaluation.results import ResultsFile, Row
from hullft_ops.ttft.evaluation.runner import Evaluator, missing_pairs
from hullft_ops.ttft.model.loading import checked_device, load_model
from hullft_ops.ttft.model.memory import keep_freed_memory
from hullft_ops.ttft.scale.cluster import (
    Workers,
    cluster,
    completed,
    found_anywhere,
    staff,
    use_threads,
)
from hullft_ops.ttft.store.datastore import Datastore
from hullft_ops.ttft.store.embedding import open_embedder

Task = tuple[Prompt, list[Settings], list[Row]]


class EvaluationWorker:
    """Holds a model, an embedder and a datastore, which the first prompt loads."""

    def __init__(self, threads: int, config: Config, run: str, device: str) -> None:
        self._threads, self._config, self._run, self._device = threads, config, run, device
        self._warm = False

    def measure(self, prompt: Prompt, settings: list[Settings], known: list[Row]) -> list[Row]:
        """A row for each of the settings; ``known`` has earlier rows of the prompt."""
        evaluator = self._evaluator
        evaluator.remember(known)
        if not self._warm:
            evaluator.warm_up(prompt, settings[0])
            self._warm = True
        return list(evaluator.measure_all(prompt, settings))

    @cached_property
    def _evaluator(self) -> Evaluator:
        use_threads(self._threads)
        assert self._config.store is not None
        keep_freed_memory()
        model, tokenizer = load_model(
            self._config.model,
            checked_device(self._device),
            allow_missing_weights=self._config.allow_missing_weights,
        )
        store = Datastore.open(self._config.store, verify=False)
        embedder = open_embedder(self._config.embedder)
        experts, seed = open_experts(self._config.experts), self._config.seed
        evaluator = Evaluator(model, tokenizer, store, embedder, seed=seed, experts=experts)
        if evaluator.run != self._run:
            raise ConfigError(
                "a worker has another model, tokenizer, datastore or embedder than the driver "
                f"under the same name (run {evaluator.run}, the driver's is {self._run})"
            )
        return evaluator


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
    tasks = _tasks(inputs.prompts, config.configurations, results)
    if not tasks:
        return
    total = len(inputs.prompts) * len(config.configurations)
    missing = sum(len(settings) for _, settings, _ in tasks)
    sources = _found_anywhere(replace(config, store=inputs.store_path, prompts=None, corpus=None))
    needed = (sources, evaluator.run, "cuda" if workers.gpus else "cpu")
    with (
        cluster(workers) as found,
        staff(EvaluationWorker, found, [needed] * min(found.count or 1, len(tasks))) as actors,
        progress_bar(log) as bar,
    ):
        bar_task = bar.add_task("evaluating", total=total, completed=total - missing)
        for _, rows in completed(actors, tasks, lambda actor, t: actor.measure.remote(*t)):
            for row in rows:
                results.append(row)
                bar.advance(bar_task)


def _tasks(
    prompts: Sequence[Prompt], settings: Sequence[Settings], results: ResultsFile
) -> list[Task]:
    tasks: dict[str, Task] = {}
    known = {row.prompt: row for row in results.rows.values()}
    for prompt, setting in missing_pairs(prompts, settings, results):
        rows = [known[prompt.id]] if prompt.id in known else []
        tasks.setdefault(prompt.id, (prompt, [], rows))[1].append(setting)
    return list(tasks.values())


def _found_anywhere(config: Config) -> Config:
    """The same configuration, with absolute paths."""
    return replace(
        config,
        model=config.model and found_anywhere(config.model),
        embedder=found_anywhere(config.embedder),
        store=config.store and config.store.resolve(),
        experts=config.experts and config.experts.resolve(),
    )
