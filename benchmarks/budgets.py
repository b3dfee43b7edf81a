"""Whether `adapted(prompt, seconds=...)` keeps its budget, and what more seconds gain.

    python -m benchmarks.budgets benchmarks/results/smollm2/budgets.json --output budgets.jsonl

adapts to each prompt of the configuration under each budget, with its first settings, and writes a
row each. A budget is kept if the block starts before it is over, or at most a pass later.
"""

import argparse
import json
from pathlib import Path
from time import perf_counter

from hullft_ops.ttft import TestTimeFinetuner, keep_freed_memory
from hullft_ops.ttft.evaluation.config import read_config
from hullft_ops.ttft.evaluation.runner import open_inputs

BUDGETS = (2.5, 5.0, 10.0, 20.0)  # seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    keep_freed_memory()
    config = read_config(arguments.config)
    inputs = open_inputs(config)
    loaded, settings = inputs.evaluator, config.settings[0]
    ttft = TestTimeFinetuner(
        loaded.model, loaded.tokenizer, loaded.store, loaded.embedder, **settings
    )
    with arguments.output.open("w", encoding="utf-8") as output:
        for prompt in inputs.prompts:
            for budget in BUDGETS:
                row = adaptation(ttft, prompt.text, budget)
                output.write(json.dumps(row) + "\n")
                output.flush()


def adaptation(ttft: TestTimeFinetuner, prompt: str, budget: float) -> dict[str, float]:
    """Seconds until the block starts, seconds a pass, passes, and bits per byte in the block."""
    start = perf_counter()
    with ttft.adapted(prompt, seconds=budget) as report:
        seconds = perf_counter() - start
        bits = ttft.score_text(prompt).value
    passes = report.forward_backward_passes
    training = report.seconds_forward + report.seconds_backward + report.seconds_step
    return {
        "budget": budget,
        "seconds": seconds,
        "seconds_pass": training / max(passes, 1),
        "passes": passes,
        "bits_per_byte": bits,
    }


if __name__ == "__main__":
    main()
