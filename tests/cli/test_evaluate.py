"""``hullft-ops evaluate``: its rows, and going on after a kill, on a tiny random model."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from hullft_ops.cli.app import app
from hullft_ops.ttft import Datastore, TestTimeFinetuner, bits_per_byte, load_embedder
from hullft_ops.ttft.evaluation import runner
from hullft_ops.ttft.evaluation.config import ConfigError
from hullft_ops.ttft.evaluation.corpus import read_prompts
from hullft_ops.ttft.evaluation.results import open_results, read_rows
from hullft_ops.ttft.evaluation.runner import Evaluator
from hullft_ops.ttft.model.loading import load_model
from hullft_ops.ttft.store.embedding import SentenceTransformerEmbedder

PROMPTS = 4
GRID = [
    "--method",
    "knn",
    "--method",
    "hullft",
    "--steps",
    3,
    "--refresh",
    1,
    "--refresh",
    2,
]
CONFIGS = ["knn n=3 refresh=1 lr=0.01", "hullft n=3 refresh=1 lr=0.01"]
CONFIGS += ["hullft n=3 refresh=2 lr=0.01"]


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)])


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def untimed(row: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in row.items() if not k.startswith("seconds")}


@pytest.fixture(scope="session")
def inputs(
    model_directory: Path,
    embedder_directory: Path,
    corpus_file: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> list[object]:
    """Options that name a model, a datastore of 50 texts, and 6 prompts of two domains."""
    lines = corpus_file.read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines[14:]]
    directory = tmp_path_factory.mktemp("inputs")
    embedder = load_embedder(str(embedder_directory))
    Datastore.build(texts[6:], embedder, directory / "store", progress=False)
    prompts = [{"text": t, "domain": "ab"[i % 2]} for i, t in enumerate(texts[:6])]
    file = directory / "prompts.jsonl"
    file.write_text("".join(json.dumps(p) + "\n" for p in prompts), encoding="utf-8")
    models = ["--model", model_directory, "--embedder", embedder_directory]
    return [*models, "--store", directory / "store", "--prompts", file, "--lr", 0.01]


@pytest.fixture(scope="session")
def first(inputs: list[object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("evaluate") / "results.jsonl"
    result = invoke(*inputs, *GRID, "--limit", PROMPTS, "--output", output)
    assert result.exit_code == 0, result.stderr
    assert "4 prompts (a: 2, b: 2), datastore of 44 texts" in " ".join(
        result.stderr.split()
    )
    return output


def test_there_is_a_row_for_each_pair(first: Path) -> None:
    rows = rows_of(first)
    assert len(rows) == PROMPTS * len(CONFIGS)
    assert len({(row["prompt"], row["config"]) for row in rows}) == len(rows)
    assert {row["config"] for row in rows} == set(CONFIGS)
    assert len({row["run"] for row in rows}) == 1


def test_each_prompt_begins_with_another_configuration(first: Path) -> None:
    configs = [row["config"] for row in rows_of(first)]
    assert configs[:: len(CONFIGS)] == [
        CONFIGS[i % len(CONFIGS)] for i in range(PROMPTS)
    ]


def test_a_row_says_what_was_done(first: Path) -> None:
    for row in rows_of(first):
        assert row["steps"] == 3
        assert (
            row["passes"] == 3
            if row["settings"]["refresh"] == 1
            else row["passes"] <= 3
        )
        assert 1 <= row["support_size"] <= 3
        assert row["bits_per_byte_after"] != row["bits_per_byte_before"]
        assert row["bytes_scored"] > 0
        assert list(row["seconds"]) == ["embed", "search", "select", "finetune"]
        assert all(seconds > 0 for seconds in row["seconds"].values())
        # Embedding and search were done once for all rows of the prompt.
        assert (
            row["seconds"]["select"] + row["seconds"]["finetune"] <= row["seconds_row"]
        )
        assert row["error"] is None
        assert row["versions"]["torch"]
        assert row["versions"]["device"] == "cpu"


def test_what_the_configurations_share_is_the_same_in_their_rows(first: Path) -> None:
    rows = rows_of(first)
    for prompt in {row["prompt"] for row in rows}:
        same = [row for row in rows if row["prompt"] == prompt]
        assert len({row["bits_per_byte_before"] for row in same}) == 1
        assert len({row["seconds"]["embed"] for row in same}) == 1
        assert len({row["seconds"]["search"] for row in same}) == 1


def test_the_same_seed_gives_the_same_numbers(
    first: Path, inputs: list[object], tmp_path: Path
) -> None:
    again = tmp_path / "again.jsonl"
    assert invoke(*inputs, *GRID, "--limit", PROMPTS, "--output", again).exit_code == 0
    assert list(map(untimed, rows_of(again))) == list(map(untimed, rows_of(first)))


@pytest.mark.parametrize("kept", [0, 1, 5, 11])
def test_a_file_cut_off_anywhere_is_completed(
    kept: int, first: Path, inputs: list[object], tmp_path: Path
) -> None:
    lines = first.read_bytes().splitlines(keepends=True)
    cut = tmp_path / "cut.jsonl"
    cut.write_bytes(b"".join(lines[:kept]) + lines[kept][: len(lines[kept]) // 2])
    assert invoke(*inputs, *GRID, "--limit", PROMPTS, "--output", cut).exit_code == 0
    assert cut.read_bytes().splitlines()[:kept] == [
        line.rstrip() for line in lines[:kept]
    ]
    assert list(map(untimed, rows_of(cut))) == list(map(untimed, rows_of(first)))


def test_a_killed_run_goes_on(
    inputs: list[object], first: Path, tmp_path: Path
) -> None:
    output = tmp_path / "killed.jsonl"
    options = [*inputs, *GRID, "--limit", PROMPTS, "--output", output]
    command = [sys.executable, "-m", "hullft_ops", "evaluate", *map(str, options)]
    process = subprocess.Popen(
        command,
        # Another number of threads rounds otherwise.
        env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None and not (
        output.exists() and output.read_bytes().count(b"\n")
    ):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = [
        line
        for line in output.read_bytes().splitlines(keepends=True)
        if line[-1:] == b"\n"
    ]
    assert len(before) >= 1
    result = invoke(*options)
    assert result.exit_code == 0, result.stderr
    assert output.read_bytes().startswith(b"".join(before))
    assert list(map(untimed, rows_of(output))) == list(map(untimed, rows_of(first)))


def test_further_configurations_and_prompts_are_added(
    first: Path, inputs: list[object], tmp_path: Path
) -> None:
    output = tmp_path / "more.jsonl"
    output.write_bytes(first.read_bytes())
    more = ["--method", "hullft", "--steps", 2, "--refresh", 1, "--limit", 6]
    assert invoke(*inputs, *more, "--output", output).exit_code == 0
    assert output.read_bytes().startswith(first.read_bytes())
    assert len(rows_of(output)) == PROMPTS * len(CONFIGS) + 6


def test_rows_of_another_run_are_refused(
    first: Path, inputs: list[object], tmp_path: Path
) -> None:
    output = tmp_path / "other.jsonl"
    output.write_bytes(first.read_bytes())
    result = invoke(*inputs, *GRID, "--seed", 1, "--output", output)
    assert result.exit_code == 2
    assert (
        "rows of another model, tokenizer, datastore, embedder or seed" in result.stderr
    )
    assert output.read_bytes() == first.read_bytes()


def test_a_file_in_use_is_refused(inputs: list[object], tmp_path: Path) -> None:
    import fcntl

    output = tmp_path / "used.jsonl"
    with output.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        result = invoke(*inputs, *GRID, "--output", output)
    assert result.exit_code == 2
    assert "another process is writing to it" in result.stderr


@pytest.mark.parametrize("steps", [1, 3], ids=["of the score", "of a pass"])
def test_a_loss_that_is_not_finite_is_a_row_with_an_error(
    inputs: list[object], tmp_path: Path, steps: int
) -> None:
    output = tmp_path / "diverged.jsonl"
    options = ["--method", "knn", "--steps", steps, "--limit", 1, "--output", output]
    assert invoke(*inputs[:-1], 1e30, *options).exit_code == 0
    (row,) = rows_of(output)
    assert row["bits_per_byte_after"] is None
    assert "is nan" in row["error"]
    assert row["seconds"] == {}


def test_prompts_that_the_datastore_holds_are_left_out(
    inputs: list[object], corpus_file: Path, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    texts = [
        json.loads(line)["text"] for line in corpus_file.read_text().splitlines()[14:]
    ]
    prompts.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts[4:8]))
    changed = [
        prompts if str(item).endswith("prompts.jsonl") else item for item in inputs
    ]
    output = tmp_path / "out.jsonl"
    result = invoke(*changed, "--method", "knn", "--steps", 2, "--output", output)
    assert result.exit_code == 0, result.stderr
    assert "2 prompts left out: the datastore holds their text" in " ".join(
        result.stderr.split()
    )
    assert len(rows_of(output)) == 2


@pytest.mark.parametrize("command", ["evaluate", "tune"])
def test_without_a_prompt_there_is_nothing_to_do(
    command: str, inputs: list[object], corpus_file: Path, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(corpus_file.read_text().splitlines()[20] + "\n")
    changed = [
        prompts if str(item).endswith("prompts.jsonl") else item for item in inputs
    ]
    more = ["--method", "knn", "--steps", 2, "--output", tmp_path / "out"]
    more += ["--seconds", 1] if command == "tune" else []
    result = CliRunner().invoke(app, [command, *map(str, [*changed, *more])])
    assert result.exit_code == 2, result.output
    assert result.stderr.splitlines()[-1] == (
        f"hullft-ops {command}: no prompt is left, the datastore holds the text of all of them"
    )


def test_gradient_reuse_on_the_picks_of_sift(
    inputs: list[object], tmp_path: Path
) -> None:
    grid = {
        "method": "sift",
        "n_select": 12,
        "refresh": [1, 3],
        "noise": 1.0,
        "lr": 0.01,
    }
    config = {"settings": [grid | {"reuse": [None, "global", "consecutive"]}]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    output = tmp_path / "out.jsonl"
    options = ["--config", tmp_path / "config.json", "--limit", 2, "--output", output]
    result = invoke(*inputs[:-2], *options)
    assert result.exit_code == 0, result.stderr
    rows = {(r["prompt"], r["config"]): r for r in rows_of(output)}
    assert len(rows) == 12
    for prompt in {prompt for prompt, _ in rows}:

        def of(refresh: int, reuse: str, prompt: str = prompt) -> dict[str, Any]:
            name = f"sift n=12 refresh={refresh} lr=0.01 noise=1{reuse}"
            return rows[prompt, name]

        # Without reuse the order of the picks is all that differs.
        assert of(1, " reuse=consecutive")["passes"] == of(1, "")["passes"] == 12
        assert of(3, " reuse=global")["passes"] == of(3, "")["passes"] < 12
        assert (
            of(3, " reuse=global")["passes"]
            <= of(3, " reuse=consecutive")["passes"]
            <= 12
        )
        assert len({of(3, r)["support_size"] for r in ("", " reuse=consecutive")}) == 1
        assert all(
            of(3, r)["steps"] == 12 for r in ("", " reuse=global", " reuse=consecutive")
        )


def test_texts_in_the_context_extend_a_file(
    first: Path, inputs: list[object], tmp_path: Path
) -> None:
    output = tmp_path / "results.jsonl"
    output.write_bytes(first.read_bytes())
    grid = [*GRID, "--steps", 0, "--context", 0, "--context", 2]
    result = invoke(*inputs, *grid, "--limit", PROMPTS, "--output", output)
    assert result.exit_code == 0, result.stderr
    assert output.read_bytes().startswith(first.read_bytes())
    rows = rows_of(output)
    both = ["no steps", *CONFIGS]
    assert {row["config"] for row in rows} == {
        *both,
        *(f"{name} context=2" for name in both),
    }
    assert len(rows) == 2 * len(both) * PROMPTS
    model, tokenizer = load_model(str(inputs[1]), torch.device("cpu"))
    embedder = load_embedder(str(inputs[3]))
    options = {"n_select": 0, "context": 2}
    store = Datastore.open(Path(str(inputs[5])))
    finetuner = TestTimeFinetuner(model, tokenizer, store, embedder, **options)
    texts = {prompt.id: prompt.text for prompt in read_prompts(Path(str(inputs[7])))}
    fit: list[int] = []
    for prompt in {row["prompt"] for row in rows}:
        of = {row["config"]: row for row in rows if row["prompt"] == prompt}
        assert len({row["bytes_scored"] for row in of.values()}) == 1
        assert len({row["bits_per_byte_before"] for row in of.values()}) == 1
        after = {name: row["bits_per_byte_after"] for name, row in of.items()}
        assert after["no steps"] == of["no steps"]["bits_per_byte_before"]
        with finetuner.adapted(texts[prompt]) as report:
            fit.append(len(report.context_indices))
        for name in both:
            assert (after[name] == after[f"{name} context=2"]) == (fit[-1] == 0)
        wanted = bits_per_byte(
            model, tokenizer, texts[prompt], prefix_ids=report.prefix_ids
        )
        assert after["no steps context=2"] == pytest.approx(wanted, rel=1e-6)
        row = of["no steps context=2"]
        assert (row["steps"], row["passes"], row["support_size"]) == (0, 0, 0)
        assert row["settings"]["context"] == 2
    assert any(fit)
    page = CliRunner().invoke(
        app, ["report", str(output), "--out", str(tmp_path / "report")]
    )
    assert page.exit_code == 0, page.output
    written = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert "knn n=3 refresh=1 lr=0.01 context=2" in written


def test_contexts_share_an_adaptation(
    inputs: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapted = TestTimeFinetuner.adapted
    adaptations: list[object] = []

    def counted(finetuner: TestTimeFinetuner, *arguments: Any, **options: Any) -> Any:
        adaptations.append(finetuner)
        return adapted(finetuner, *arguments, **options)

    monkeypatch.setattr(TestTimeFinetuner, "adapted", counted)
    contexts = (2, 0, 1)
    grid = [*inputs, "--method", "hullft", "--steps", 4, "--lr", 0.01, "--limit", 2]

    def rows(name: str, *contexts: int) -> list[dict[str, Any]]:
        options = [option for context in contexts for option in ("--context", context)]
        result = invoke(*grid, *options, "--output", tmp_path / name)
        assert result.exit_code == 0, result.stderr
        return rows_of(tmp_path / name)

    together = rows("together.jsonl", *contexts)
    # One for each prompt, and one to warm up.
    assert len(adaptations) == 3
    alone = [row for context in contexts for row in rows(f"{context}.jsonl", context)]
    timed = ("seconds", "seconds_row")
    kept = [
        {key: row[key] for key in row if key not in timed}
        for row in (*together, *alone)
    ]
    assert sorted(kept[:6], key=str) == sorted(kept[6:], key=str)
    assert len({row["bits_per_byte_after"] for row in together}) > 2
    for row in together:
        assert all(
            row["seconds"][stage] > 0
            for stage in ("embed", "search", "select", "finetune")
        )


def max_lengths_of(
    inputs: list[object], lengths: list[int | None], tmp_path: Path
) -> dict[tuple[str, int | None], dict[str, Any]]:
    grid = {"method": "knn", "n_select": 2, "lr": 0.01, "max_length": lengths}
    (tmp_path / "config.json").write_text(json.dumps({"settings": grid}))
    output = tmp_path / "out.jsonl"
    options = ["--config", tmp_path / "config.json", "--limit", 2, "--output", output]
    result = invoke(*inputs[:-2], *options)
    assert result.exit_code == 0, result.stderr
    rows = rows_of(output)
    # Each row but the first of a prompt finds what the file says of the prompt.
    output.write_text("".join(json.dumps(row) + "\n" for row in rows[:1]))
    assert invoke(*inputs[:-2], *options).exit_code == 0
    assert list(map(untimed, rows_of(output))) == list(map(untimed, rows))
    return {(row["excerpt"], row["settings"].get("max_length")): row for row in rows}


def test_a_model_without_a_limit_is_scored_by_the_length_of_the_settings(
    inputs: list[object], unlimited_directory: Path, tmp_path: Path
) -> None:
    inputs = [unlimited_directory if item == inputs[1] else item for item in inputs]
    found = max_lengths_of(inputs, [16, 24], tmp_path)
    model, tokenizer = load_model(str(unlimited_directory), torch.device("cpu"))
    assert len(found) == 4
    for (text, length), row in found.items():
        scored = bits_per_byte(model, tokenizer, text, max_length=length)
        assert row["bits_per_byte_before"] == pytest.approx(scored, rel=1e-6)
        assert row["bits_per_byte_after"] != row["bits_per_byte_before"]


def test_a_model_with_a_limit_is_scored_by_its_own(
    inputs: list[object], tmp_path: Path
) -> None:
    found = max_lengths_of(inputs, [None, 16], tmp_path)
    for text in {text for text, _ in found}:
        whole, cut = found[text, None], found[text, 16]
        assert whole["bits_per_byte_before"] == cut["bits_per_byte_before"]
        assert whole["bits_per_byte_after"] != cut["bits_per_byte_after"]


def test_a_run_that_is_done_is_left_as_it_is(
    first: Path, inputs: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "done.jsonl"
    output.write_bytes(first.read_bytes())
    monkeypatch.delattr(Evaluator, "_adapted")
    assert invoke(*inputs, *GRID, "--limit", PROMPTS, "--output", output).exit_code == 0
    assert output.read_bytes() == first.read_bytes()


def test_no_row_has_the_seconds_of_the_warm_up(
    inputs: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, encode = [], SentenceTransformerEmbedder.encode
    warm_up = Evaluator.warm_up

    def look(embedder: SentenceTransformerEmbedder, texts: list[str]) -> np.ndarray:
        read.append(texts[0])
        return encode(embedder, texts)

    def warm(evaluator: Evaluator, *arguments: Any) -> None:
        warm_up(evaluator, *arguments)
        read.append("warm")

    monkeypatch.setattr(SentenceTransformerEmbedder, "encode", look)
    monkeypatch.setattr(Evaluator, "warm_up", warm)
    output = tmp_path / "results.jsonl"
    assert invoke(*inputs, *GRID, "--limit", 1, "--output", output).exit_code == 0
    assert len(read[read.index("warm") + 1 :]) == 1
    assert rows_of(output)[0]["excerpt"].startswith(read[-1][:100])


@pytest.mark.parametrize(
    "content", ['{"text": "a"}\n{"text": "b"}', '{"text": "a"}', "notes"]
)
def test_a_file_of_something_else_is_left_as_it_is(
    content: str, tmp_path: Path
) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(content)
    with pytest.raises(
        ConfigError,
        match="line 1: lacks 'run'|its last line is neither a row nor a truncated one",
    ):
        open_results(file, "run").__enter__()
    assert file.read_text() == content


def test_out_of_memory_while_scoring_says_what_to_lower(
    inputs: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **keywords: object) -> None:
        torch.empty(2**60, dtype=torch.uint8)

    monkeypatch.setattr(runner, "score_text", fail)
    options = ["--method", "knn", "--steps", 2, "--output", tmp_path / "out.jsonl"]
    result = invoke(*inputs, *options)
    assert result.exit_code == 2
    assert (
        "out of memory while scoring a prompt: leave out"
        in result.stderr.splitlines()[-1]
    )


def test_prompts_with_a_byte_order_mark(inputs: list[object], tmp_path: Path) -> None:
    given = next(
        Path(str(item)) for item in inputs if str(item).endswith("prompts.jsonl")
    )
    marked = tmp_path / "prompts.jsonl"
    marked.write_text(given.read_text(encoding="utf-8"), encoding="utf-8-sig")
    assert read_prompts(marked) == read_prompts(given)


def test_a_second_row_of_a_pair_is_refused(first: Path, tmp_path: Path) -> None:
    with open_results(tmp_path / "rows.jsonl", "run") as results:
        row = replace(read_rows(first)[0], run="run")
        results.append(row)
        with pytest.raises(ValueError, match="holds a row of knn n=3 .* on "):
            results.append(row)
    assert read_rows(tmp_path / "rows.jsonl") == [row]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a prompt"}\n{oops\n', "line 2: not JSON"),
        (
            '{"text": "a prompt", "domain": 3}\n',
            'line 1: "domain" must be a string, got 3',
        ),
        (
            '{"text": "a prompt", "domain": "\\ud800"}\n',
            'line 1: "domain" with half a surrogate',
        ),
        ("\n", "holds no prompt"),
        # The first prompt to be adapted to is the one that warms up, the second is measured.
        ('{"text": "a"}\n', "prompt 'a': score_text: text must have at least 2 tokens"),
        (
            '{"text": "two words"}\n{"text": "a"}\n',
            "prompt 'a': score_text: text must have",
        ),
    ],
)
def test_prompts_that_cannot_be_used_end_with_one_line(
    content: str, message: str, inputs: list[object], tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(content, encoding="utf-8")
    given = [
        prompts if str(item).endswith("prompts.jsonl") else item for item in inputs
    ]
    options = ["--method", "knn", "--steps", 2, "--output", tmp_path / "out.jsonl"]
    result = invoke(*given, *options)
    assert result.exit_code == 2
    last = result.stderr.splitlines()[-1]
    assert last.startswith("hullft-ops evaluate: ")
    assert message in last


def test_a_store_without_prompts_is_refused(
    inputs: list[object], tmp_path: Path
) -> None:
    result = invoke(*inputs[:6], "--output", tmp_path / "out.jsonl")
    assert result.exit_code == 2
    assert "store and prompts must be given together" in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--method", "best"],
            "best n=50 refresh=2 lr=0.01: TestTimeFinetuner: method must be",
        ),
        (["--limit", 0], "limit must be at least 1, got 0"),
        (["--seed", 2**64], f"seed must be in 0..2^63 - 1, got {2**64}"),
        (["--limit", 7], "limit is 7, there are 6 prompts"),
        (
            ["--store", "/no/store"],
            "store /no/store: Datastore.open: no datastore at /no/store",
        ),
        (["--prompts", "/no/file"], "prompts /no/file: No such file or directory"),
        (["--config", "/no/config"], "config /no/config: No such file or directory"),
        (
            ["--corpus", "/no/file"],
            "corpus must not be given along with store and prompts",
        ),
    ],
)
def test_what_cannot_be_met_ends_with_one_line(
    options: list[object], message: str, inputs: list[object], tmp_path: Path
) -> None:
    result = invoke(*inputs, *options, "--output", tmp_path / "out.jsonl")
    assert result.exit_code == 2
    last = result.stderr.splitlines()[-1]
    assert last.startswith("hullft-ops evaluate: ")
    assert message in last
