"""No adaptation, kNN and HullFT side by side: what `hullft-ops demo` runs, prints and draws."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Column, Table

from hullft_ops._terminal import echo
from hullft_ops.ttft._files import write_durably
from hullft_ops.ttft._progress import progress_bar
from hullft_ops.ttft.errors import NonFiniteLossError
from hullft_ops.ttft.evaluation.config import Settings
from hullft_ops.ttft.evaluation.corpus import Prompt
from hullft_ops.ttft.evaluation.report import hurt_sentences
from hullft_ops.ttft.evaluation.results import Row
from hullft_ops.ttft.evaluation.runner import Evaluator
from hullft_ops.ttft.evaluation.statistics import NONE, Measurements
from hullft_ops.ttft.report import AdaptationReport

# Some three lines of a continuation.
_NEW_TOKENS = 40
_COLUMNS = ["bits per\nbyte", "against\nnone", "search\ns", "select\ns", "finetune\ns"]
_COLUMNS += ["passes", "support"]
# The methods by their keys in demo.json, with their labels and settings.
METHODS: dict[str, tuple[str, Settings]] = {
    "none": (NONE, {}),
    "knn": ("kNN", {"method": "knn", "refresh": 1}),
    "hullft_refresh1": ("HullFT refresh 1", {"method": "hullft", "refresh": 1}),
    "hullft_refresh2": ("HullFT refresh 2", {"method": "hullft", "refresh": 2}),
}


def run_all(
    evaluator: Evaluator, prompts: Sequence[Prompt], shared: Settings
) -> tuple[list[Row], dict[str, Any]]:
    """A row for each prompt and setting, then each run and a continuation for demo.json."""
    settings = {key: own | shared for key, (_, own) in METHODS.items() if own}
    evaluator.prepare(list(settings.values()))
    rows: list[Row] = []
    shown = []
    with progress_bar() as bar:
        task = bar.add_task("adapting", total=len(prompts) * len(settings))
        for setting in settings.values():
            brief = setting | {"n_select": min(2, shared["n_select"])}
            _, report = _finite(evaluator.warm_up(prompts[0], brief))
        # HullFT at refresh 2 makes about three quarters of the passes.
        passes = round(2.75 * shared["n_select"])
        each = report.seconds_finetune / report.forward_backward_passes
        seconds = len(prompts) * passes * each
        about = f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{seconds:.0f} s"
        counts = f"{len(prompts)} prompts, {passes} passes each, {each:.2g} s a pass"
        echo(f"about {about}: {counts}", err=True)
        for prompt in prompts:
            runs: dict[str, Any] = {}
            for key, setting in settings.items():
                [measured] = evaluator.measure(prompt, [setting])
                row, report = _finite(measured)
                rows.append(row)
                runs.setdefault(
                    "none", {"bits_per_byte": row.bits_per_byte_before, "report": None}
                )
                runs[key] = {
                    "bits_per_byte": row.bits_per_byte_after,
                    "report": asdict(report),
                }
                bar.advance(task)
            shown.append({"source": prompt.domain, "text": prompt.text, "runs": runs})
    text, adapted = prompts[0].text, "hullft_refresh2"
    half = text[: len(text) // 2]
    before, after = evaluator.continuations(half, settings[adapted], _NEW_TOKENS)
    continued = {"text": half, NONE: before, METHODS[adapted][0]: after}
    return rows, {"prompts": shown, "continued": continued}


def _finite(
    measured: tuple[Row, AdaptationReport | None],
) -> tuple[Row, AdaptationReport]:
    row, report = measured
    if report is None or row.error is not None:
        raise NonFiniteLossError(row.error)
    return row, report


def compare(rows: Sequence[Row]) -> dict[str, Any]:
    """Each method's means, and which one is below which. HullFT counts if both settings do.

    ``rows`` are of every method except "none" on every prompt, in the order of `METHODS`.
    """
    measured = Measurements.of(rows)
    configs = dict(zip(METHODS, measured.configs, strict=True))
    bits = {key: measured.mean_bits(config) for key, config in configs.items()}
    knn, *hullft = list(METHODS)[1:]

    def below(keys: Sequence[str], other: str) -> dict[str, int]:
        return {
            key: measured.prompts_below(configs[key], configs[other]) for key in keys
        }

    methods = {
        key: {
            "label": METHODS[key][0],
            "refresh": METHODS[key][1].get("refresh"),
            "bits_per_byte": bits[key],
            **{
                f"seconds_{k}": seconds
                for k, seconds in measured.mean_stages(config).items()
            },
            "forward_backward_passes": measured.mean_of(config, "passes"),
            "optimizer_steps": measured.mean_of(config, "steps"),
            "support_size": measured.mean_of(config, "support_size"),
            "seconds_total": measured.mean_seconds(config),
            "relative_to_none": bits[key] / bits["none"] - 1,
        }
        for key, config in configs.items()
    }
    verdicts = {
        "knn_below_none": bits[knn] < bits["none"],
        "hullft_below_none": all(bits[key] < bits["none"] for key in hullft),
        "hullft_below_knn": all(bits[key] < bits[knn] for key in hullft),
        "prompts": len(measured.prompts),
        "prompts_below_none": below([knn, *hullft], "none"),
        "prompts_below_knn": below(hullft, knn),
    }
    return {"methods": methods, "verdicts": verdicts}


def table(figures: dict[str, Any]) -> Table:
    """A row for each method: means over the prompts."""
    columns = [Column(heading, justify="right", no_wrap=True) for heading in _COLUMNS]
    title = f"Mean of {figures['verdicts']['prompts']} held-out prompts"
    # Without the usual padding it fits a terminal of 80 columns.
    narrow: dict[str, Any] = {
        "box": box.SIMPLE_HEAD,
        "padding": (0, 1, 0, 0),
        "pad_edge": False,
    }
    made = Table("method", *columns, title=title, **narrow)
    for key, mean in figures["methods"].items():
        cells = (
            f"{mean['bits_per_byte']:.4f}",
            f"{mean['relative_to_none']:+.1%}",
            f"{mean['seconds_embed'] + mean['seconds_search']:.3f}",
            f"{mean['seconds_select']:.4f}",
            f"{mean['seconds_finetune']:.2f}",
            f"{mean['forward_backward_passes']:.1f}",
            f"{mean['support_size']:.1f}",
        )
        made.add_row(mean["label"], *(cells[:1] if key == "none" else cells))
    return made


def sentences(figures: dict[str, Any]) -> list[str]:
    """Facts that the table lacks: on how many prompts a method wins, and whether adapting hurts."""
    verdicts, lines = figures["verdicts"], []
    for other in ("none", "knn"):
        shown = ", ".join(
            f"{METHODS[key][0]} on {below} of {verdicts['prompts']} prompts"
            for key, below in verdicts[f"prompts_below_{other}"].items()
        )
        lines.append(f"Fewer bits than {METHODS[other][0]}: {shown}.")
    means = figures["methods"].values()
    return lines + hurt_sentences(
        [m["label"] for m in means if m["relative_to_none"] > 0]
    )


def write_json(content: dict[str, Any], path: Path) -> None:
    """Write ``content``, with paths as strings; the file appears whole or not at all."""
    text = json.dumps(
        content, indent=2, ensure_ascii=False, allow_nan=False, default=str
    )
    # A path may have bytes that are not UTF-8. JSON spells them as Python does.
    write_durably(path, f"{text}\n".encode(errors="backslashreplace"))
