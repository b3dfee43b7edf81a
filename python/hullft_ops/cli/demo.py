"""``hullft-ops demo``: compare methods on the sources of installed packages."""

from pathlib import Path

import tyro

from hullft_ops._terminal import echo
from hullft_ops.cli.evaluate import measured_rows
from hullft_ops.cli.options import N_SELECT, Inputs
from hullft_ops.cli.terminal import print_report
from hullft_ops.distributed.workers import Workers
from hullft_ops.evaluation.experiment import Experiment
from hullft_ops.evaluation.report import write_report
from hullft_ops.evaluation.statistics import Measurements
from hullft_ops.ttft.files import check_output, new_folder


def demo(
    inputs: tyro.conf.OmitArgPrefixes[Inputs],
    *,
    corpus: str | None = None,
    limit: int = 16,
    n_select: int = N_SELECT,
    lr: float | None = None,
    seed: int = 0,
    output: Path = Path("hullft_demo"),
) -> None:
    """Compare no adaptation, kNN and HullFT on held-out passages of real text.

    Args:
        inputs: the models.
        corpus: what to compare on, anything that hullft-ops index reads; None for the sources of
            installed packages.
        limit: held-out passages to adapt to.
        n_select: optimizer steps for each of them.
        lr: Adam's learning rate; None for 2e-4 with the shipped model, 5e-5 with others.
        seed: chooses the held-out passages.
        output: folder for the datastore, the rows and a report. Another run adds to it.
    """
    check_output(output / "report", overwrite=True)
    shared = {"n_select": n_select} | ({} if lr is None else {"lr": lr})
    experiment = Experiment(
        model=inputs.model,
        allow_missing_weights=inputs.allow_missing_weights,
        embedder=inputs.embedder,
        corpus=corpus,
        limit=limit,
        seed=seed,
        settings=[
            {"method": "knn"} | shared,
            {"method": "hullft", "refresh": [1, 2]} | shared,
        ],
    )
    rows = measured_rows(
        experiment,
        output / "results.jsonl",
        device=inputs.device,
        workers=Workers(),
        datastores=output / "datastores",
    )
    measured = Measurements.of(rows)
    with new_folder(output / "report", overwrite=True) as folder:
        write_report(measured, folder)
    print_report(measured)
    echo(output / "results.jsonl", output / "report")
