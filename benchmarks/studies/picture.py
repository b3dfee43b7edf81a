"""A picture of what settings gain: the change of the answer's bits over the seconds of a prompt.

    python -m benchmarks.studies.picture docs/answer.svg code=code.jsonl.xz documentation=...

draws a panel for each domain, and in it the settings that ``SHOWN`` names.
"""

import argparse
from pathlib import Path
from statistics import median

from matplotlib.figure import Figure

from benchmarks.studies.pairs import table_of
from hullft_ops.evaluation.results import read_rows
from hullft_ops.evaluation.statistics import relative

READING = "context=5 context_following=1"
SHOWN = {
    "no steps ngrams=1": "n-grams",
    f"no steps {READING}": "5 passages",
    f"no steps {READING} ngrams=1": "both",
    f"n=0 refresh=2 lr=5e-05 {READING} ngrams=1 train_on_prompt=2": "both, and the prompt",
    f"hullft n=8 refresh=2 lr=5e-05 {READING} ngrams=1": "both, and eight steps",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("domains", nargs="+", metavar="DOMAIN=ROWS")
    arguments = parser.parse_args()
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    panels = figure.subplots(1, len(arguments.domains), sharex=True, squeeze=False)[0]
    for panel, argument in zip(panels, arguments.domains, strict=True):
        domain, _, path = argument.partition("=")
        measured = table_of(read_rows(Path(path)), "continuation")
        panel.plot(0, 0, "o", label="no adaptation")
        for label, rows in measured.rows.items():
            name = SHOWN.get(
                label.replace(" dtype=bfloat16", "").replace(" max_length=512", "")
            )
            if name is None:
                continue
            change = relative(measured.after[label], measured.before)
            seconds = median(row.seconds_total for row in rows)
            error = [[change.value - change.low], [change.high - change.value]]
            panel.errorbar(seconds, change.value, error, fmt="o", capsize=3, label=name)
        panel.set_title(domain)
        panel.set_xlabel("seconds of one core")
        panel.yaxis.set_major_formatter("{x:.0%}")
    panels[0].set_ylabel("bits of the answer")
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=6
    )
    figure.savefig(arguments.output, metadata={"Date": None})


if __name__ == "__main__":
    main()
