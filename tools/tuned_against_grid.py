"""How near the setting that tune found comes to the best of a full grid.

    hullft-ops tune --config GRID.json --prompts TUNING.jsonl --output tuned.json
    hullft-ops evaluate --config GRID.json --prompts PROMPTS.jsonl --output grid.jsonl
    python tools/tuned_against_grid.py tuned.json grid.jsonl

exits with 1 where its bits per byte, on prompts that it was not tuned on, are more than 1 % above
the best's. The best is chosen on those same prompts, which is in its favour.
"""

import argparse
from pathlib import Path

from hullft_ops.ttft.evaluation.config import config_id, read_config
from hullft_ops.ttft.evaluation.results import read_rows
from hullft_ops.ttft.evaluation.statistics import NONE, Measurements

MAX_ABOVE = 0.01


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Compare a tuned setting with a full grid."
    )
    parser.add_argument("tuned", type=Path, help="configuration that tune wrote")
    parser.add_argument("grid", type=Path, help="results of evaluate over the grid")
    options = parser.parse_args()
    (settings,) = read_config(options.tuned).configurations
    measured = Measurements.of(read_rows(options.grid))
    tuned = config_id(settings)
    if tuned not in measured.rows:
        raise SystemExit(
            f"tuned_against_grid: {options.grid} has no results of {tuned}"
        )
    ranked = sorted(measured.rows, key=measured.mean_bits)
    above = measured.relative_bits(tuned, ranked[0])
    print(
        f"{len(ranked)} configurations on {len(measured.prompts)} prompts, "
        f"{measured.mean_bits(NONE):.4f} bits per byte without adaptation\n"
        f"best   {measured.mean_bits(ranked[0]):.4f}  {ranked[0]}\n"
        f"tuned  {measured.mean_bits(tuned):.4f}  {tuned}, number {ranked.index(tuned) + 1}\n"
        f"worst  {measured.mean_bits(ranked[-1]):.4f}  {ranked[-1]}\n"
        f"above the best: {above.value:+.2%} [{above.low:+.2%}, {above.high:+.2%}]"
    )
    raise SystemExit(above.value > MAX_ABOVE)


if __name__ == "__main__":
    main()
