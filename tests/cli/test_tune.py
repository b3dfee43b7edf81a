"""``hullft-ops tune``: what halving finds, in what time, and going on after a kill."""

import json
import math
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from hullft_ops.cli.app import app
from hullft_ops.ttft.evaluation import tuning as tuning_run
from hullft_ops.ttft.evaluation.config import (
    ConfigError,
    Settings,
    config_id,
    expand_grid,
)
from hullft_ops.ttft.evaluation.corpus import Prompt
from hullft_ops.ttft.evaluation.results import Row
from hullft_ops.ttft.evaluation.tuning import Tuned, tune
from result_rows import result_row

PROMPTS = [Prompt(f"prompt {number}") for number in range(60)]
GRID = expand_grid(
    [
        {
            "method": ["knn", "hullft"],
            "n_select": [10, 20, 50],
            "lr": [1e-4, 2e-4, 4e-4, 8e-4],
        },
        {
            "method": "hullft",
            "n_select": [10, 20, 50],
            "refresh": [1, 4],
            "lr": [1e-4, 4e-4],
        },
    ],
    None,
)


def true_bits(settings: Settings) -> float:
    """A valley at 3e-4, deeper for more steps, with 10 % between the grid's best and worst."""
    distance = math.log2(settings["lr"] / 3e-4)
    return (
        1.5
        + 0.05 * distance**2
        + 0.6 / settings["n_select"]
        + 0.02 * settings["refresh"]
    )


class Landscape:
    """Measures: prompts differ far more than settings do, and settings a little by prompt."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []

    def __call__(self, prompt: Prompt, settings: Settings) -> Row:
        key = prompt.id, config_id(settings)
        assert key not in self.calls
        self.calls.append(key)
        shared, own = random.Random(prompt.id), random.Random(str(key))
        seconds = 0.06 * settings["n_select"] / settings["refresh"]
        return result_row(
            prompt.id,
            settings=settings,
            bits_per_byte_after=true_bits(settings)
            + shared.gauss(0, 0.3)
            + own.gauss(0, 0.05),
            seconds={"finetune": seconds},
            seconds_row=seconds + 0.05,
        )


def search(
    landscape: Landscape, *, limit: float = 600, seconds: float = math.inf
) -> Tuned:
    return tune(landscape, PROMPTS, GRID, seconds=seconds, limit=limit)


def test_it_finds_a_setting_near_the_best_in_less_time_than_the_grid_takes() -> None:
    landscape = Landscape()
    tuned = search(landscape, limit=300)
    assert true_bits(tuned.settings) <= 1.01 * min(map(true_bits, GRID))
    assert tuned.seconds_spent <= 300
    assert len(landscape.calls) < 0.5 * len(GRID) * len(PROMPTS)
    sizes = [rung["configurations"] for rung in tuned.rungs]
    assert sizes[0] == len(GRID)
    assert all(later == math.ceil(size / 3) for size, later in pairwise(sizes))


def test_all_candidates_of_a_rung_run_on_the_same_prompts() -> None:
    landscape = Landscape()
    tuned = search(landscape, limit=300)
    used = Counter(config for _, config in landscape.calls)
    assert sorted(set(used.values())) == sorted(
        {rung["prompts"] for rung in tuned.rungs}
    )
    assert tuned.prompts == max(used.values())


@pytest.mark.parametrize("limit", [1.0, 20.0, 60.0, 150.0])
def test_the_time_limit_holds_but_for_the_row_in_progress(limit: float) -> None:
    tuned = search(Landscape(), limit=limit)
    assert tuned.seconds_spent <= limit + 0.06 * 50 + 0.05
    assert tuned.prompts >= 1


def test_a_limit_that_is_spent_to_the_last_second_ends_the_search() -> None:
    def measure(prompt: Prompt, settings: Settings) -> Row:
        assert len(calls) < 2, "the time is spent"
        calls.append(prompt.id)
        return result_row(prompt.id, settings=settings, seconds_row=0.5)

    calls: list[str] = []
    tuned = tune(measure, PROMPTS, GRID[:4], seconds=math.inf, limit=1.0)
    assert (tuned.seconds_spent, tuned.prompts) == (1.0, 1)


def test_the_time_for_a_prompt_is_a_bound() -> None:
    tuned = search(Landscape(), seconds=0.7)
    assert tuned.seconds <= 0.7
    quick = [s for s in GRID if 0.06 * s["n_select"] / s["refresh"] <= 0.7]
    assert true_bits(tuned.settings) <= 1.01 * min(map(true_bits, quick))


def test_nothing_quick_enough_is_an_error_that_names_the_quickest() -> None:
    with pytest.raises(
        ConfigError, match=r"at most 0.1 s .* hullft n=10 refresh=4 .* 0.15 s"
    ):
        search(Landscape(), seconds=0.1)


@pytest.mark.parametrize("none", [0.0, -1.0, math.nan])
def test_time_is_wanted(none: float) -> None:
    with pytest.raises(
        ConfigError, match="the time for a prompt must be above 0 s, got"
    ):
        search(Landscape(), seconds=none)
    with pytest.raises(
        ConfigError, match="the time for all measurements must be above 0 s"
    ):
        search(Landscape(), limit=none)


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["tune", *map(str, arguments)])


@pytest.fixture
def options(
    model_directory: Path, embedder_directory: Path, corpus_file: Path, tmp_path: Path
) -> list[object]:
    given: list[object] = ["--model", model_directory, "--embedder", embedder_directory]
    given += ["--corpus", corpus_file, "--limit", 5, "--refresh", 1, "--n-select", 2]
    given += [
        "--n-select",
        6,
        "--lr",
        1e-4,
        "--lr",
        1e-2,
        "--method",
        "hullft",
        "--minutes",
        1,
    ]
    return [
        *given,
        "--results",
        tmp_path / "rows.jsonl",
        "--output",
        tmp_path / "tuned.json",
    ]


def test_the_folder_of_the_configuration_is_made_before_the_measuring(
    options: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    output = tmp_path / "new" / "folder" / "tuned.json"
    result = invoke(*options, "--limit", 1, "--output", output)
    assert result.exit_code == 0, result.stderr
    assert json.loads(output.read_text())["settings"]["method"] == "hullft"


def test_an_axis_without_values_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="settings: n_select must not be an empty list"
    ):
        expand_grid([{"method": "knn", "n_select": []}], None)


def test_the_command_writes_a_configuration_that_evaluate_takes(
    options: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = invoke(*options)
    assert result.exit_code == 0, result.stderr
    written: dict[str, Any] = json.loads((tmp_path / "tuned.json").read_text())
    # A model that knows nothing learns most from the most and the largest steps.
    assert written["settings"] == {
        "method": "hullft",
        "n_select": 6,
        "refresh": 1,
        "lr": 1e-2,
    }
    assert written["tuned"]["bits_per_byte"] < written["tuned"]["bits_per_byte_before"]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"text": "the red cat sat on the blue mat"}\n')
    arguments = ["--config", "tuned.json", "--prompts", str(prompts)]
    result = CliRunner().invoke(app, ["evaluate", *arguments])
    assert result.exit_code == 0, result.stderr
    (row,) = map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())
    assert row["settings"] == written["settings"]


def test_the_command_tunes_the_texts_in_the_context(
    options: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = invoke(*options, "--context", 0, "--context", 1, "--limit", 1)
    assert result.exit_code == 0, result.stderr
    rows = map(json.loads, (tmp_path / "rows.jsonl").read_text().splitlines())
    assert {row["settings"]["context"] for row in rows} == {0, 1}
    assert json.loads((tmp_path / "tuned.json").read_text())["settings"]["context"] in (
        0,
        1,
    )


def test_the_command_says_when_adapting_hurts(
    options: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for before, hurts in ((3.55, True), (4.04, False)):
        found = Tuned(GRID[0], 4.04, before, 1.0, 5, 9.0, [])
        monkeypatch.setattr(
            tuning_run, "run_tuning", lambda *_, found=found, **__: found
        )
        result = invoke(*options)
        assert result.exit_code == 0, result.stderr
        assert ("Adapting hurts: even with these settings" in result.stdout) == hurts


def test_a_run_that_was_cut_off_decides_as_it_would_have(
    options: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options += ["--limit", 2]
    assert invoke(*options).exit_code == 0
    whole = (tmp_path / "rows.jsonl").read_bytes()
    written = (tmp_path / "tuned.json").read_bytes()
    (tmp_path / "tuned.json").unlink()
    assert invoke(*options).exit_code == 0
    assert (tmp_path / "rows.jsonl").read_bytes() == whole
    assert (tmp_path / "tuned.json").read_bytes() == written
    lines = whole.splitlines(keepends=True)
    (tmp_path / "rows.jsonl").write_bytes(b"".join(lines[:3]) + lines[3][:40])
    assert invoke(*options).exit_code == 0
    again = (tmp_path / "rows.jsonl").read_bytes()
    assert again.startswith(b"".join(lines[:3]))
    chosen = [json.loads(line)["config"] for line in again.splitlines()]
    assert chosen == [json.loads(line)["config"] for line in lines]


def test_a_model_without_a_limit_is_tuned_with_the_length_of_the_settings(
    options: list[object],
    unlimited_directory: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"settings": {"max_length": 16}}), encoding="utf-8")
    result = invoke(
        *options, "--model", unlimited_directory, "--config", config, "--limit", 2
    )
    assert result.exit_code == 0, result.stderr
    written = json.loads((tmp_path / "tuned.json").read_text(encoding="utf-8"))
    assert written["settings"]["max_length"] == 16
    assert written["tuned"]["bits_per_byte"] < written["tuned"]["bits_per_byte_before"]


def test_nothing_quick_enough_ends_with_one_line(
    options: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = invoke(*options, "--seconds", 1e-9)
    assert result.exit_code == 2
    assert (
        "hullft-ops tune: no configuration takes at most 1e-09 s a prompt"
        in result.stderr
    )
    assert not (tmp_path / "tuned.json").exists()
