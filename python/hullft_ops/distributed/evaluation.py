"""Measuring settings on held-out prompts in workers, a prompt at a time."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from hullft_ops.distributed.workers import Workers, do_item, worker_pool
from hullft_ops.evaluation.experiment import Experiment
from hullft_ops.evaluation.measuring import Task, load_evaluation, measure
from hullft_ops.evaluation.results import Row
from hullft_ops.ttft.validation import InputError


def load_measurement(run: str, experiment: Experiment) -> Callable[[Task], list[Row]]:
    """What a worker does: the rows of a prompt, by the driver's model and datastore."""
    evaluation = load_evaluation(experiment)
    if evaluation.run != run:
        raise InputError(
            "workers: a worker has another model, tokenizer, datastore or embedder of the "
            f"same name (run {evaluation.run}, the driver's is {run})"
        )

    def measured(task: Task) -> list[Row]:
        return list(measure(evaluation, task))

    # A row that pays for allocations and thread pools.
    measured((evaluation.prompts[0], list(evaluation.finetuners)[:1]))
    return measured


def ray_rows(
    tasks: list[Task],
    workers: Workers,
    *,
    run: str,
    experiment: Experiment,
) -> Iterator[Row]:
    """The rows of all tasks, measured in workers; a prompt's arrive together.

    Except for seconds and order, a single process with as many threads has the same rows.

    Args:
        tasks: what is `missing`.
        workers: how many; a worker with GPUs has its model on "cuda".
        run: identity of the driver's model and datastore.
        experiment: as in `load_evaluation`.

    Raises:
        InputError: as `worker_pool`, or a worker loads another model or datastore.
    """
    if not tasks:
        return
    with worker_pool(
        workers,
        load_measurement,
        run=run,
        experiment=replace(experiment, device="cuda" if workers.gpus else "cpu"),
    ) as pool:
        for rows in pool.map_unordered(do_item, tasks):
            yield from rows
