"""A picture of what settings gain: the change of the answer's bits over the seconds of a prompt.

    python -m benchmarks.studies.picture docs/answer.svg code=code.jsonl.xz,code_prompt.jsonl.xz

draws a panel for each domain, and in it the settings that ``SHOWN`` names, each on its own prompts.
"""

import argparse
from collections import defaultdict
from pathlib import Path
from statistics import median

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from hullft_ops.evaluation.results import Row, key_of, read_rows
from hullft_ops.evaluation.statistics import relative

Settings = dict[str, str | float]
BFLOAT16: Settings = {"dtype": "bfloat16"}
READING: Settings = BFLOAT16 | {"context": 5, "context_following": 1}
STEPS: Settings = {"refresh": 2, "lr": 5e-05}
SELECTED: Settings = STEPS | {"method": "hullft", "n_select": 8, "max_length": 512}
NGRAMS: Settings = {"ngrams": 1.0}
SHOWN: dict[str, Settings] = {
    "n-grams": BFLOAT16 | NGRAMS,
    "5 passages": READING,
    "both": READING | NGRAMS,
    "the default: both, and the prompt": READING
    | NGRAMS
    | STEPS
    | {"train_on_prompt": 2},
    "5 passages, and eight steps": READING | SELECTED,
    "six minutes' LoRA, n-grams": BFLOAT16
    | NGRAMS
    | {"adapter": "{domain}/adapter256"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("domains", nargs="+", metavar="DOMAIN=ROWS[,ROWS]")
    arguments = parser.parse_args()
    matplotlib.rcParams["svg.hashsalt"] = "hullft_ops"
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    panels = figure.subplots(1, len(arguments.domains), squeeze=False)[0]
    for panel, argument in zip(panels, arguments.domains, strict=True):
        domain, _, paths = argument.partition("=")
        rows: dict[str, list[Row]] = defaultdict(list)
        for path in paths.split(","):
            for row in read_rows(Path(path)):
                rows[row.config].append(row)
        panel.plot(0, 0, "ko", label="no adaptation")
        for name, settings in SHOWN.items():
            config = key_of(settings).replace("{domain}", domain)
            draw(panel, rows[config], name)
        panel.set_title(domain)
        panel.set_xlabel("seconds of one core")
        panel.yaxis.set_major_formatter("{x:.0%}")
    panels[0].set_ylabel("change of the answer's bits")
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(arguments.output, metadata={"Date": None})


def draw(panel: matplotlib.axes.Axes, rows: list[Row], name: str) -> None:
    scores = [row.scores["continuation"] for row in rows]
    before = np.array([score.before for score in scores])
    change = relative(np.array([score.after for score in scores]), before)
    seconds = median(row.seconds_total for row in rows)
    error = [[change.value - change.low], [change.high - change.value]]
    panel.errorbar(seconds, change.value, error, fmt="o", capsize=3, label=name)


if __name__ == "__main__":
    main()
