"""``hullft-ops demo``: compare methods on sources of torch."""

from pathlib import Path
from typing import Annotated, Any

from hullft_ops.cli.evaluate import IN_FILES, evaluate
from hullft_ops.cli.options import fields_of
from hullft_ops.evaluation.experiment import Experiment


def demo(
    experiment: Annotated[dict[str, Any], fields_of(Experiment, without=IN_FILES)],
    *,
    output: Path = Path("hullft_demo.jsonl"),
) -> None:
    """Compare no adaptation, kNN and HullFT on held-out passages of real code; the same as
    hullft-ops evaluate --config demo, which has more options.

    Args:
        experiment: in place of what the demo has: 16 passages, and the shipped model.
        output: results file, JSONL. Another run adds to it.
    """
    evaluate(experiment, {}, {}, config="demo", output=output)
