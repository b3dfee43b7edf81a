"""Picking settings by successive halving: many on few prompts, then the better ones on more.

After Jamieson and Talwalkar, *Non-stochastic Best Arm Identification and Hyperparameter
Optimization* (AISTATS 2016). Every rung gets the same share of the time, on the same prompts for
all. Decisions depend only on the rows, so a run that was killed goes on as it would have.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean

from hullft_ops.ttft._progress import progress_bar
from hullft_ops.ttft.evaluation.config import ConfigError, Settings, config_id
from hullft_ops.ttft.evaluation.corpus import Prompt
from hullft_ops.ttft.evaluation.results import Row, open_results
from hullft_ops.ttft.evaluation.runner import Inputs, rotated
from hullft_ops.ttft.store.format import write_json_durably

# Each rung keeps one in this many.
ETA = 3


@dataclass(frozen=True)
class Tuned:
    """The best settings.

    Attributes:
        settings: keyword arguments of `TestTimeFinetuner`.
        bits_per_byte: mean over the prompts.
        bits_per_byte_before: mean over the same prompts without adaptation.
        seconds: mean time from the prompt to the adapted model.
        prompts: number of prompts behind these means.
        seconds_spent: time spent measuring all configurations.
        rungs: how many "configurations" each rung compared, and on how many "prompts" in all.
    """

    settings: Settings
    bits_per_byte: float
    bits_per_byte_before: float
    seconds: float
    prompts: int
    seconds_spent: float
    rungs: list[dict[str, int]]


def tune(
    measure: Callable[[Prompt, Settings], Row],
    prompts: Sequence[Prompt],
    candidates: Sequence[Settings],
    *,
    seconds: float,
    limit: float,
    seed: int = 0,
) -> Tuned:
    """The candidate with the fewest mean bits per byte among those that are quick enough.

    ConfigError if there are no candidates, prompts or time, or no candidate is quick enough.

    Args:
        measure: returns the row of a candidate on a prompt, from a file or by running it.
        prompts: held-out prompts, in the order of their use.
        candidates: settings to choose from, in an order that ``seed`` shuffles.
        seconds: mean time that a prompt may take, from the prompt to the adapted model.
        limit: seconds of measuring in all, even if some candidates have then never run.
    """
    if not candidates or not prompts:
        raise ConfigError(
            f"got {len(candidates)} candidates and {len(prompts)} prompts"
        )
    for what, allowed in (("a prompt", seconds), ("all measurements", limit)):
        if not allowed > 0:
            raise ConfigError(f"the time for {what} must be above 0 s, got {allowed:g}")
    alive = [_Candidate(settings) for settings in candidates]
    random.Random(seed).shuffle(alive)
    spent, used, rungs = 0.0, 0, []
    for rungs_left in range(max(1, math.ceil(math.log(len(alive), ETA))), 0, -1):
        end, last = spent + (limit - spent) / rungs_left, 0.0
        # The very first prompt always runs; any other must fit into the time.
        while used < len(prompts) and (not used or spent + last < end):
            turns = rotated(alive, used)
            rows: list[Row] = []
            for candidate in turns:
                if sum(row.seconds_row for row in rows) < limit - spent:
                    rows.append(measure(prompts[used], candidate.settings))
            last = sum(row.seconds_row for row in rows)
            spent += last
            # All must be compared on the same prompts.
            if used and len(rows) < len(turns):
                break
            for candidate, row in zip(turns, rows, strict=False):
                candidate.rows.append(row)
            tried = [candidate for candidate in alive if candidate.rows]
            alive = [c for c in tried if c.seconds <= seconds and c.bits < math.inf]
            if not alive:
                fastest = min(tried, key=lambda candidate: candidate.seconds)
                raise ConfigError(
                    f"no configuration takes at most {seconds:g} s a prompt with a finite loss; "
                    f"the quickest, {config_id(fastest.settings)}, takes {fastest.seconds:.3g} s"
                )
            used += 1
        rungs.append({"configurations": len(alive), "prompts": used})
        alive = sorted(alive, key=lambda candidate: candidate.bits)[
            : math.ceil(len(alive) / ETA)
        ]
        if len(alive) == 1 and used == len(prompts):
            break
    best = alive[0]
    return Tuned(
        settings=best.settings,
        bits_per_byte=best.bits,
        bits_per_byte_before=fmean(row.bits_per_byte_before for row in best.rows),
        seconds=best.seconds,
        prompts=used,
        seconds_spent=spent,
        rungs=rungs,
    )


@dataclass
class _Candidate:
    settings: Settings
    rows: list[Row] = field(default_factory=list)

    @property
    def bits(self) -> float:
        values = [row.bits_per_byte_after for row in self.rows]
        return fmean(math.inf if value is None else value for value in values)

    @property
    def seconds(self) -> float:
        return fmean(row.seconds_total for row in self.rows)


def run_tuning(
    inputs: Inputs, results: Path, output: Path, *, seconds: float, limit: float
) -> Tuned:
    """Tune, and write the best configuration to ``output``. Raises what `tune` raises."""
    output.parent.mkdir(parents=True, exist_ok=True)
    config, evaluator = inputs.config, inputs.evaluator
    candidates = config.configurations
    # A setting that is refused must not leave an empty file.
    evaluator.prepare(candidates)
    with open_results(results, evaluator.run) as file, progress_bar() as bar:
        evaluator.prepare((), file.rows.values())
        task = bar.add_task(
            "tuning, seconds", total=limit if limit < math.inf else None
        )

        def measure(prompt: Prompt, settings: Settings) -> Row:
            key = prompt.id, config_id(settings)
            if key not in file.rows:
                [row] = evaluator.measure_all(prompt, [settings])
                file.append(row)
            row = file.rows[key]
            bar.update(
                task, advance=row.seconds_row, description=f"tuning, seconds ({key[1]})"
            )
            return row

        tuned = tune(
            measure,
            inputs.prompts,
            candidates,
            seconds=seconds,
            limit=limit,
            seed=config.seed,
        )
    figures = asdict(tuned)
    content = {
        "model": config.model,
        "allow_missing_weights": config.allow_missing_weights,
        "embedder": config.embedder,
        "store": str(inputs.store_path),
        "experts": str(config.experts) if tuned.settings.get("n_experts") else None,
        "settings": figures.pop("settings"),
        "tuned": figures,
    }
    write_json_durably(output, content)
    return tuned
