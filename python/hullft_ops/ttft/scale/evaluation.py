"""Measuring configurations on held-out prompts in several processes."""

from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path

from hullft_ops.ttft.evaluation.config import Config, ConfigError
from hullft_ops.ttft.evaluation.results import Row
from hullft_ops.ttft.evaluation.runner import Evaluator, Inputs, Task
from hullft_ops.ttft.scale.cluster import Workers, cluster, completed, found_anywhere, staff
from hullft_ops.ttft.store.datastore import Datastore
from hullft_ops.ttft.store.embedding import open_embedder


class EvaluationWorker:
    """Measures prompts with the driver's model, datastore, embedder and experts."""

    def __init__(self, config: Config, store: Path, run: str, device: str) -> None:
        # The driver has verified the datastore.
        texts, embedder = Datastore.open(store, verify=False), open_embedder(config.embedder)
        self._evaluator = Evaluator.of(config, texts, embedder, device)
        if self._evaluator.run != run:
            raise ConfigError(
                "a worker has another model, tokenizer, datastore or embedder than the driver "
                f"under the same name (run {self._evaluator.run}, the driver's is {run})"
            )

    def __call__(self, task: Task) -> list[Row]:
        return list(self._evaluator.measure_all(*task))


def ray_rows(inputs: Inputs, workers: Workers) -> Callable[[list[Task]], Generator[Row]]:
    """Pass this to `evaluate` to measure in Ray's workers, each one prompt at a time.

    Except for the seconds, rows equal those of a single process with as many threads. `ScaleError`
    if the cluster is too small, or a prompt kills every worker that takes it.
    """

    def measure(tasks: list[Task]) -> Generator[Row]:
        if not tasks:
            return
        arguments = (
            _found_anywhere(inputs.config),
            inputs.store_path.resolve(),
            inputs.evaluator.run,
            workers.device,
        )
        with (
            cluster(workers) as count,
            staff(EvaluationWorker, workers, [arguments] * min(count, len(tasks))) as actors,
        ):
            for _, rows in completed(actors, tasks):
                yield from rows

    return measure


def _found_anywhere(config: Config) -> Config:
    """What a worker reads of the configuration, with absolute paths."""
    return replace(
        config,
        model=config.model and found_anywhere(config.model),
        embedder=found_anywhere(config.embedder),
        experts=config.experts and config.experts.resolve(),
    )
