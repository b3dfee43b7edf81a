"""``hullft-ops evaluate``: measure settings on held-out prompts."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from tqdm import tqdm

from hullft_ops.cli.options import fields_of
from hullft_ops.distributed.evaluation import ray_rows
from hullft_ops.distributed.workers import Workers
from hullft_ops.evaluation.experiment import Experiment, read_experiment
from hullft_ops.evaluation.measuring import (
    load_evaluation,
    measure_tasks,
    missing,
)
from hullft_ops.evaluation.report import print_report
from hullft_ops.evaluation.results import Row, read_rows
from hullft_ops.evaluation.statistics import Measurements
from hullft_ops.ttft.files import check_output
from hullft_ops.ttft.records import open_records
from hullft_ops.ttft.techniques import TTFTConfig
from hullft_ops.ttft.terminal import counted, echo, ticking

# Fields of an experiment that only its file has.
IN_FILES = ("settings", "description")


def evaluate(
    experiment: Annotated[dict[str, Any], fields_of(Experiment, without=IN_FILES)],
    settings: Annotated[dict[str, Any], fields_of(TTFTConfig, several=True)],
    workers: Annotated[dict[str, Any], fields_of(Workers)],
    *,
    config: Path | None = None,
    output: Path = Path("results.jsonl"),
) -> None:
    """Measure every combination of settings on held-out prompts; write a row for each, and print a
    table.

    With --corpus alone, it holds out whole files of your own, and compares no adaptation,
    retrieval alone, and retrieval with steps. A killed run resumes: rows that the output has are
    not measured again.

    Args:
        experiment: in place of what the file says.
        settings: each takes several values, in place of the file's.
        workers: where to measure.
        config: JSON file.
        output: results file, JSONL.
    """
    read = Experiment() if config is None else read_experiment(config)
    grids = [grid | settings for grid in read.settings]
    if config is None and "corpus" in experiment:
        steps = {"train_on_prompt": TTFTConfig.train_on_prompt}
        grids = [settings | {"n_select": 0, "train_on_prompt": 0}, steps | settings]
    chosen = replace(read, **experiment, settings=grids)
    measure(chosen, output, Workers(**workers), config=config)


def measure(
    experiment: Experiment,
    output: Path,
    workers: Workers | None = None,
    *,
    config: Path | None = None,
) -> None:
    """Measure what ``output`` lacks of an experiment, and print the table."""
    # These may be files; a folder is no place for rows.
    sources = experiment.prompts, experiment.corpus, experiment.model, config
    check_output(output, kind="rows", inputs=sources)
    corpus = experiment.corpus
    if corpus and output.resolve().is_relative_to(Path(corpus).resolve()):
        raise ValueError(
            f"output {output} is in the corpus, which would have one more text the next time; "
            "--output takes another place"
        )
    if output.exists():
        # A file of another kind is refused before the work.
        read_rows(output)
    rows = _measured(experiment, output, workers or Workers())
    echo(output)
    print_report(Measurements.of(rows, experiment.score))


def _measured(experiment: Experiment, output: Path, workers: Workers) -> list[Row]:
    """An experiment's rows; measures the ones that ``output`` lacks, and adds them to it."""
    evaluation = load_evaluation(experiment)
    prompts, keys = evaluation.prompts, list(evaluation.finetuners)
    counts = counted(len(prompts), "prompt"), counted(len(keys), "configuration")
    echo(*evaluation.notes, ", ".join(counts), err=True)
    with open_records(output, evaluation.run, Row) as results:
        tasks = missing(evaluation, results.rows)
        total = sum(len(configs) for _, configs in tasks)
        rows = measure_tasks(evaluation, tasks)
        if workers.engine == "ray":
            rows = ray_rows(tasks, workers, run=evaluation.run, experiment=experiment)
        for row in ticking(tqdm(rows, total=total, unit="row")):
            results.append(row)
    return [results.rows[prompt.id, config] for prompt in prompts for config in keys]
