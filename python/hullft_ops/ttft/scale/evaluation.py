"""Measuring configurations on held-out prompts in several processes."""

from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path

from hullft_ops.ttft.evaluation.config import Config, ConfigError
from hullft_ops.ttft.evaluation.results import Row
from hullft_ops.ttft.evaluation.runner import Evaluator, Inputs, Task
from hullft_ops.ttft.scale.cluster import Workers, done_by_workers, found_anywhere
from hullft_ops.ttft.store.datastore import Datastore
from hullft_ops.ttft.store.embedding import open_embedder


def load_evaluator(
    config: Config, store: Path, run: str, device: str
) -> Callable[[Task], list[Row]]:
    """What a worker does: a prompt's rows, by the model, datastore and experts of the driver."""
    # The driver has verified the datastore.
    texts, embedder = (
        Datastore.open(store, verify=False),
        open_embedder(config.embedder),
    )
    evaluator = Evaluator.of(config, texts, embedder, device)
    if evaluator.run != run:
        raise ConfigError(
            "a worker has another model, tokenizer, datastore or embedder than the driver "
            f"under the same name (run {evaluator.run}, the driver's is {run})"
        )
    return lambda task: list(evaluator.measure_all(*task))


def ray_rows(
    inputs: Inputs, workers: Workers
) -> Callable[[list[Task]], Generator[Row]]:
    """Pass this to `evaluate` to measure in Ray's workers, each one prompt at a time.

    Except for the seconds, rows equal those of a single process with as many threads. `ScaleError`
    if the cluster is too small, or a prompt kills every worker that takes it.
    """
    config = inputs.config
    named = replace(
        config,
        model=config.model and found_anywhere(config.model),
        embedder=found_anywhere(config.embedder),
        experts=config.experts and config.experts.resolve(),
    )
    arguments = named, inputs.store_path.resolve(), inputs.evaluator.run, workers.device

    def measure(tasks: list[Task]) -> Generator[Row]:
        for rows in done_by_workers(load_evaluator, arguments, tasks, workers):
            yield from rows

    return measure
