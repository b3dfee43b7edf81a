"""``hullft-ops demo``: compare methods on the sources of installed packages."""

from pathlib import Path
from typing import Annotated, Any

from hullft_ops._terminal import echo
from hullft_ops.cli.evaluate import measured_rows
from hullft_ops.cli.options import N_SELECT, fields_of
from hullft_ops.distributed.workers import Workers
from hullft_ops.evaluation.experiment import Experiment
from hullft_ops.evaluation.report import print_report
from hullft_ops.evaluation.statistics import Measurements
from hullft_ops.ttft.config import ModelConfig
from hullft_ops.ttft.embedding import DEFAULT_EMBEDDER


def demo(
    model: Annotated[dict[str, Any], fields_of(ModelConfig)],
    *,
    embedder: str = DEFAULT_EMBEDDER,
    corpus: str | None = None,
    limit: int = 16,
    n_select: int = N_SELECT,
    lr: float | None = None,
    seed: int = 0,
    output: Path = Path("hullft_demo"),
) -> None:
    """Compare no adaptation, kNN and HullFT on held-out passages of real text.

    Args:
        model: the language model.
        embedder: name or folder of a sentence-transformers model.
        corpus: what to compare on, anything that hullft-ops index reads; None for the sources of
            installed packages.
        limit: held-out passages to adapt to.
        n_select: optimizer steps for each of them.
        lr: Adam's learning rate; None for 2e-4 with the shipped model, 5e-5 with others.
        seed: chooses the held-out passages.
        output: folder for the datastore and the rows. Another run adds to it.
    """
    shared = {"n_select": n_select} | ({} if lr is None else {"lr": lr})
    experiment = Experiment(
        **model,
        embedder=embedder,
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
        workers=Workers(),
        datastores=output / "datastores",
    )
    print_report(Measurements.of(rows))
    echo(output / "results.jsonl")
