"""``evaluate``, ``report``, ``tune`` and ``adapt`` with experts that are merged."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from hullft_ops.cli.app import app
from hullft_ops.ttft import Datastore, TestTimeFinetuner, load_embedder
from hullft_ops.ttft.evaluation.config import (
    Config,
    ConfigError,
    config_id,
    expand_grid,
    family,
    read_config,
)
from hullft_ops.ttft.evaluation.corpus import Prompt
from hullft_ops.ttft.experts import Experts, build_experts
from hullft_ops.ttft.model.loading import load_model
from hullft_ops.ttft.scale.evaluation import load_evaluator

PROMPTS = ["the red cat sat on the blue mat", "a dog ran to the park on the tree"]
FOLDERS = ("experts", "others")
CPU = torch.device("cpu")


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def folder(
    model_directory: Path,
    embedder_directory: Path,
    corpus_file: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A datastore of 12 texts, experts of 3 clusters of it, and other experts of the same."""
    folder = tmp_path_factory.mktemp("merging")
    lines = corpus_file.read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines[14:26]]
    embedder = load_embedder(str(embedder_directory))
    store = Datastore.build(texts, embedder, folder / "store", progress=False)
    model, tokenizer = load_model(str(model_directory), CPU)
    for name, seed in (("experts", 0), ("others", 1)):
        settings = {"clusters": 3, "rank": 2, "passages": 3, "lr": 0.01, "seed": seed}
        build_experts(model, tokenizer, store, folder / name, **settings)
    prompts = "".join(json.dumps({"text": text}) + "\n" for text in PROMPTS)
    (folder / "prompts.jsonl").write_text(prompts, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def inputs(
    model_directory: Path, embedder_directory: Path, folder: Path
) -> list[object]:
    models = ["--model", model_directory, "--embedder", embedder_directory]
    return [*models, "--store", folder / "store", "--lr", 0.01]


@pytest.fixture(scope="module")
def results(inputs: list[object], folder: Path) -> Path:
    """Rows of no experts and of 2, without steps and with 2."""
    grid = [
        "--method",
        "knn",
        "--steps",
        0,
        "--steps",
        2,
        "--n-experts",
        0,
        "--n-experts",
        2,
    ]
    given = ["--prompts", folder / "prompts.jsonl", "--experts", folder / "experts"]
    output = folder / "results.jsonl"
    result = invoke("evaluate", *inputs, *given, *grid, "--output", output)
    assert result.exit_code == 0, result.stderr
    return output


def test_rows_with_experts_are_those_of_a_finetuner_with_experts(
    results: Path, folder: Path, model_directory: Path, embedder_directory: Path
) -> None:
    rows = {(row["config"], row["excerpt"]): row for row in rows_of(results)}
    experts = Experts.open(folder / "experts")
    merged = f"experts={experts.digest} n_experts=2"
    names = ["no steps", f"no steps {merged}", "knn n=2 refresh=1 lr=0.01"]
    names += [f"knn n=2 refresh=1 lr=0.01 {merged}"]
    assert rows.keys() == {(name, prompt) for name in names for prompt in PROMPTS}
    model, tokenizer = load_model(str(model_directory), CPU)
    store, embedder = (
        Datastore.open(folder / "store"),
        load_embedder(str(embedder_directory)),
    )
    options: dict[str, Any] = {
        "experts": experts,
        "n_experts": 2,
        "method": "knn",
        "lr": 0.01,
    }
    for steps, name in ((0, names[1]), (2, names[3])):
        finetuner = TestTimeFinetuner(
            model, tokenizer, store, embedder, n_select=steps, **options
        )
        for prompt in PROMPTS:
            row = rows[name, prompt]
            with finetuner.adapted(prompt):
                wanted = finetuner.score_text(prompt).value
            assert row["bits_per_byte_after"] == pytest.approx(wanted, rel=1e-6)
            assert (
                row["bits_per_byte_after"]
                != rows[names[steps], prompt]["bits_per_byte_after"]
            )
            assert row["steps"] == steps
            assert list(row["seconds"]) == [
                "embed",
                "search",
                "select",
                "finetune",
                "merge",
            ]
            assert row["seconds"]["merge"] > 0
    for name in (names[0], names[2]):
        seconds = rows[name, PROMPTS[0]]["seconds"]
        assert list(seconds) == ["embed", "search", "select", "finetune"]


def test_a_worker_opens_the_experts_that_its_configuration_names(
    results: Path, folder: Path, model_directory: Path, embedder_directory: Path
) -> None:
    names = {"model": str(model_directory), "embedder": str(embedder_directory)}
    store, config = folder / "store", Config(**names, experts=folder / "experts")
    given = [row for row in rows_of(results) if row["excerpt"] == PROMPTS[0]]
    task = Prompt(PROMPTS[0]), [row["settings"] for row in given]
    worker = load_evaluator(config, store, given[0]["run"], "cpu")
    rows = worker(task)
    assert [row.bits_per_byte_after for row in rows] == [
        pytest.approx(row["bits_per_byte_after"], rel=1e-6) for row in given
    ]
    config = replace(config, experts=folder / "others")
    worker = load_evaluator(config, store, given[0]["run"], "cpu")
    with pytest.raises(ConfigError, match="the settings were made with experts"):
        worker(task)


def test_the_report_shows_merging_and_its_time(
    results: Path, folder: Path, tmp_path: Path
) -> None:
    result = invoke("report", results, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    header = "| embed and search | select | merge | finetune | total |"
    assert header in page
    merged = f"experts={Experts.open(folder / 'experts').digest} n_experts=2"
    assert f"no steps {merged}" in page
    between = page[page.index("Between methods") :]
    assert re.search(rf"no steps {merged} \| no steps \|", between), (
        "a method of its own"
    )
    assert re.search(rf"knn n=2 \S+ \S+ {merged} \| knn n=2 ", between)


def test_results_of_several_experts_and_of_none_stand_side_by_side(
    results: Path, inputs: list[object], folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "results.jsonl"
    output.write_bytes(results.read_bytes())
    given = ["--prompts", folder / "prompts.jsonl", "--steps", 0, "--output", output]
    assert invoke("evaluate", *inputs, *given, "--context", 1).exit_code == 0
    others = ["--experts", folder / "others", "--n-experts", 2]
    assert invoke("evaluate", *inputs, *given, *others).exit_code == 0
    names = {row["config"] for row in rows_of(output)}
    merged = {
        f"no steps experts={Experts.open(folder / f).digest} n_experts=2"
        for f in FOLDERS
    }
    assert len(merged) == 2
    assert names >= {"no steps", "no steps context=1", *merged}
    assert len({row["run"] for row in rows_of(output)}) == 1


def test_adapt_says_what_was_merged(inputs: list[object], folder: Path) -> None:
    given = ["--experts", folder / "experts", "--n-experts", 2, "--prompt", PROMPTS[0]]
    result = invoke("adapt", *inputs, *given, "--steps", 0)
    assert result.exit_code == 0, result.output
    shown = re.search(
        r"^experts merged, with their weights: (.*)$", result.stdout, re.MULTILINE
    )
    assert shown is not None
    weights = re.findall(r"\d \((0\.\d{3}|1\.000)\)", shown[1])
    assert 1 <= len(weights) <= 2
    assert sum(map(float, weights)) == pytest.approx(1, abs=2e-3)
    assert re.search(
        r"0 steps with 0 gradients; seconds: .* merge 0\.\d{3}", result.stdout
    )
    plain = invoke("adapt", *inputs, "--prompt", PROMPTS[0], "--steps", 0)
    assert "merge" not in plain.stdout


def test_tune_writes_experts_that_evaluate_and_adapt_take(
    inputs: list[object], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    prompts = ["--prompts", folder / "prompts.jsonl"]
    given = ["--experts", folder / "experts", "--n-experts", 1, "--n-experts", 3]
    grid = ["--method", "knn", "--steps", 0, "--refresh", 1]
    result = invoke("tune", *inputs, *prompts, *given, *grid)
    assert result.exit_code == 0, result.stderr
    written = json.loads(Path("tuned.json").read_text())
    assert written["settings"]["n_experts"] in (1, 3)
    assert written["experts"] == str(folder / "experts")
    result = invoke("evaluate", "--config", "tuned.json", *prompts)
    assert result.exit_code == 0, result.stderr
    assert {row["config"] for row in rows_of(Path("results.jsonl"))} == {
        config_id(written["settings"])
    }
    result = invoke("adapt", "--config", "tuned.json", "--prompt", PROMPTS[0])
    assert "experts merged" in result.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--n-experts", 2], "n_experts is 2, but experts is not given"),
        (["--experts", "EXPERTS"], "no settings have n_experts"),
        (
            ["--experts", "EXPERTS", "--n-experts", 4],
            "n_experts is 4, .* holds 3 experts",
        ),
        (["--experts", "EXPERTS", "--n-experts", -1], "n_experts must be"),
        (
            ["--experts", "STORE", "--n-experts", 1],
            "experts .*store: .* holds no experts",
        ),
        (
            ["--experts", "nothing", "--n-experts", 1],
            "experts nothing: .*no experts at nothing",
        ),
    ],
)
@pytest.mark.parametrize("command", ["adapt", "evaluate"])
def test_what_cannot_be_merged_ends_with_one_line(
    inputs: list[object],
    folder: Path,
    command: str,
    options: list[object],
    message: str,
) -> None:
    places = {"EXPERTS": folder / "experts", "STORE": folder / "store"}
    given = [places.get(str(option), option) for option in options]
    last = ["--prompt", PROMPTS[0]] if command == "adapt" else ["--limit", 1]
    if command == "evaluate":
        last += [
            "--prompts",
            folder / "prompts.jsonl",
            "--output",
            folder / "refused.jsonl",
        ]
    result = invoke(command, *inputs, *given, *last)
    assert result.exit_code == 2
    assert re.search(message, " ".join(result.stderr.splitlines()[-1:]))


# Configurations


def test_settings_with_experts_are_named_and_their_families_too() -> None:
    axes = {"method": "knn", "n_select": [0, 5], "n_experts": [0, 4], "context": [0, 2]}
    grid = expand_grid(
        [axes | {"expert_scale": 2.0, "expert_temperature": 0.1}], "gpt2"
    )
    named = {config_id(settings): family(settings) for settings in grid}
    of = "expert_scale=2 expert_temperature=0.1 n_experts=4"
    assert named == {
        "no steps": "no steps",
        "no steps context=2": "no steps",
        f"no steps {of}": "merged",
        f"no steps context=2 {of}": "merged",
        "knn n=5 refresh=1 lr=5e-05": "knn",
        "knn n=5 refresh=1 lr=5e-05 context=2": "knn context=2",
        f"knn n=5 refresh=1 lr=5e-05 {of}": "knn merged",
        f"knn n=5 refresh=1 lr=5e-05 context=2 {of}": "knn merged context=2",
    }


def test_a_file_names_the_experts(tmp_path: Path) -> None:
    content = {"experts": "some/experts", "settings": {"n_experts": [1, 4]}}
    (tmp_path / "config.json").write_text(json.dumps(content))
    config = read_config(tmp_path / "config.json")
    assert config.experts == Path("some/experts")
    grid = expand_grid(config.settings, None)
    assert [settings["n_experts"] for settings in grid] == [1, 4]
