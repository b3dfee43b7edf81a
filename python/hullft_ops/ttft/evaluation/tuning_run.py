"""Tuning from inputs to a configuration file, with the rows in a results file."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from hullft_ops._files import replacing
from hullft_ops.ttft.evaluation.config import Config, Settings, config_id
from hullft_ops.ttft.evaluation.inputs import Inputs
from hullft_ops.ttft.evaluation.prompts import Prompt
from hullft_ops.ttft.evaluation.results import Row, open_results
from hullft_ops.ttft.evaluation.tuning import Tuned, tune


def run_tuning(
    config: Config,
    inputs: Inputs,
    results: Path,
    output: Path,
    *,
    seconds: float,
    limit: float,
    log: Console,
) -> Tuned:
    """Tune, and write the best configuration to ``output``.

    Raises:
        ConfigError: `TestTimeFinetuner` refuses a setting, or no setting is quick enough.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    evaluator = inputs.evaluator(config.seed)
    candidates = config.configurations
    evaluator.prepare(candidates)
    with open_results(results, evaluator.run) as file, log.status("") as status:
        evaluator.remember(file.rows.values())
        if not file.rows:
            evaluator.warm_up(inputs.prompts[0], candidates[0])
        spent = 0.0

        def measure(prompt: Prompt, settings: Settings) -> Row:
            nonlocal spent
            key = prompt.id, config_id(settings)
            if key not in file.rows:
                status.update(f"{spent:.0f} of at most {limit:.0f} s: {key[1]}")
                file.append(evaluator.measure(prompt, settings))
            spent += file.rows[key].seconds_row
            return file.rows[key]

        tuned = tune(
            measure,
            inputs.prompts,
            candidates,
            seconds=seconds,
            limit=limit,
            seed=config.seed,
        )
    _write(config, inputs, tuned, output)
    return tuned


def _write(config: Config, inputs: Inputs, tuned: Tuned, output: Path) -> None:
    figures = asdict(tuned)
    content: dict[str, Any] = {
        "model": config.model,
        "allow_missing_weights": config.allow_missing_weights,
        "embedder": config.embedder,
        "store": str(inputs.store_path),
        "settings": figures.pop("settings"),
        "tuned": figures,
    }
    with replacing(output) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
