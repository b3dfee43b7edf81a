"""``hullft-ops evaluate`` and ``report``: what they measure, write, and refuse."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from command import Result, hullft_ops, succeeded
from evaluation_rows import result_row
from hullft_ops.evaluation.prompts import HeldOut, passages_of
from hullft_ops.evaluation.results import read_rows
from hullft_ops.ttft import (
    Datastore,
    TestTimeFinetuner,
    finetuner,
    language_model,
    load_embedder,
    load_model,
    score_text,
)
from hullft_ops.ttft.embedding import DEFAULT_EMBEDDER
from hullft_ops.ttft.terminal import listed

Evaluate = Callable[..., Result]
OUTPUT = Path("rows.jsonl")


@pytest.fixture
def prompts(texts: list[str], tmp_path: Path) -> Path:
    """Six texts that the datastore lacks, of two domains, and one that it has in another layout."""
    file = tmp_path / "prompts.jsonl"
    records = [
        {"text": text, "domain": "ab"[number % 2]}
        for number, text in enumerate(texts[:6])
    ]
    records.append({"text": f"\n   {texts[6]} \n"})
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


@pytest.fixture
def evaluate(models_of: list[object], store: Path, prompts: Path) -> Evaluate:
    """Runs the command on two prompts, with high rates for a tiny model."""
    inputs = [*models_of, "--store", store, "--prompts", prompts]
    few = ["--limit", 2, "--output", OUTPUT, "--n-select", 3, "--lr", 0.01]
    few += ["--ngrams", 0]

    def evaluate(*options: object) -> Result:
        return hullft_ops("evaluate", *inputs, *few, *options)

    return evaluate


def test_searches_are_compared(evaluate: Evaluate) -> None:
    result = evaluate(
        "--n-select", 0, "--ngrams", 1, "--search", "dense", "hybrid", "lexical"
    )

    assert result.code == 0, result.stderr

    rows = read_rows(OUTPUT)
    rows_of_search = {
        search: [row for row in rows if row.settings["search"] == search]
        for search in ("dense", "hybrid", "lexical")
    }
    bits = [row.scores["prompt"].after for row in rows]

    assert [len(rows) for rows in rows_of_search.values()] == [2, 2, 2]
    assert len({*bits}) > 2
    assert "hybrid" in result.stdout


def test_without_vectors_no_embedder_is_loaded(
    model_directory: Path, prompts: Path, texts: list[str]
) -> None:
    """By words unless an option says otherwise; of a corpus, if all options say so."""
    Datastore.build(texts[6:], None, "words")
    arguments = ["--model", model_directory, "--embedder", "missing"]
    arguments += ["--output", OUTPUT, "--n-select", 0, "--context", 1]
    of_store = [*arguments, "--store", "words", "--prompts", prompts]
    of_corpus = [*arguments, "--corpus", prompts, "--text-column", "body"]
    of_corpus += ["--limit", 1, "--search", "lexical"]
    stored = succeeded("evaluate", *of_store)

    assert "6 prompts" in stored.stderr
    assert "loading the embedder" not in stored.stderr

    dense = hullft_ops("evaluate", *of_store, "--search", "dense")

    assert "embedder missing" in dense.last

    OUTPUT.unlink()
    documents = [{"body": "\n".join(texts[6 * n :][:6])} for n in range(9)]
    prompts.write_text("\n".join(map(json.dumps, documents)))

    assert "loading the embedder" not in succeeded("evaluate", *of_corpus).stderr


def test_a_row_says_what_the_finetuner_does(
    evaluate: Evaluate,
    model_directory: Path,
    embedder_directory: Path,
    store: Path,
    texts: list[str],
) -> None:
    result = evaluate("--method", "hullft", "knn", "--context", 0, 2)

    assert result.code == 0, result.stderr
    assert result.stdout.startswith("rows.jsonl\n")
    assert "loading the model\nloading the embedder\n" in result.stderr
    assert "2 prompts, 4 configurations" in result.stderr

    rows = read_rows(OUTPUT)

    assert {(row.settings["method"], row.settings.get("context")) for row in rows} == {
        ("hullft", None),
        ("hullft", 2),
        ("knn", None),
        ("knn", 2),
    }

    texts_of = {HeldOut(text).id: text for text in texts[:6]}
    model, tokenizer = load_model(str(model_directory))
    embedder = load_embedder(str(embedder_directory))

    for row in rows:
        off = {"context": 0, "ngrams": 0, "train_on_prompt": 0}
        finetuner = TestTimeFinetuner(
            model, tokenizer, Datastore.open(store), embedder, **off | row.settings
        )
        text = texts_of[row.prompt]

        score = row.scores["prompt"]

        assert score.before == score_text(model, tokenizer, text).value

        with finetuner.adapted(text) as adaptation:
            assert score.after == adaptation.score(text, after="").value

        assert row.passes == adaptation.passes
        assert row.error is None
        assert row.versions["device"] == "cpu"
        assert row.seconds["finetune"] > 0
        assert row.seconds["prefill"] > 0


def test_a_prompt_that_the_datastore_holds_is_left_out(
    evaluate: Evaluate, texts: list[str]
) -> None:
    assert "limit is 7, there are 6 held-out prompts" in evaluate("--limit", 7).last
    assert evaluate("--limit", 6, "--method", "knn", "--n-select", 1).code == 0

    held_out = {HeldOut(text).id for text in texts[:6]}

    assert {row.prompt for row in read_rows(OUTPUT)} == held_out
    assert {row.domain for row in read_rows(OUTPUT)} == {"a", "b"}


def test_prompts_begin_with_different_configurations(evaluate: Evaluate) -> None:
    assert evaluate("--method", "knn", "hullft").code == 0
    assert [row.settings["method"] for row in read_rows(OUTPUT)] == [
        "knn",
        "hullft",
        "hullft",
        "knn",
    ]


def recorded(monkeypatch: pytest.MonkeyPatch, place: object, name: str) -> list[Any]:
    """The arguments of each call of a function, which does what it did."""
    calls = []
    function = getattr(place, name)

    def record(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        return function(*arguments, **options)

    monkeypatch.setattr(place, name, record)
    return calls


def test_configurations_share_a_prompts_neighbours_the_checks_and_the_identities(
    evaluate: Evaluate,
    models_of: list[object],
    store: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    succeeded("train", store, *models_of[:2], "--rank", 2, "--output", "adapter")
    searches = recorded(monkeypatch, finetuner, "retrieve")
    checks = recorded(monkeypatch, language_model, "check_causal")
    identities = recorded(monkeypatch, language_model, "model_identity")
    methods = ["--method", "hullft", "knn", "--context", 0, 2]

    assert evaluate(*methods, "--adapter", "adapter").code == 0

    assert len(read_rows(OUTPUT)) == 8
    # Two prompts, after one training that pays for allocations.
    assert sum(count > 0 for _, count, *_ in searches) == 3
    assert len(checks) == len(identities) == 1


def test_another_adapter_in_the_folder_is_another_configuration(
    evaluate: Evaluate, models_of: list[object], store: Path
) -> None:
    train = ["train", store, *models_of[:2], "--rank", 2, "--output", "adapter"]
    succeeded(*train)

    assert evaluate("--adapter", "adapter").code == 0

    shutil.rmtree("adapter")
    succeeded(*train, "--lr", 0.1)

    assert evaluate("--adapter", "adapter").code == 0

    adapters = [row.settings["adapter"] for row in read_rows(OUTPUT)]

    assert len(adapters) == 8
    assert len(set(adapters)) == 2
    assert all(re.fullmatch("adapter [0-9a-f]{8}", adapter) for adapter in adapters)


def test_a_loss_that_is_not_finite_is_a_row_with_an_error(evaluate: Evaluate) -> None:
    options = "--method", "knn", "--context", 0, "--lr", 1e30, 0.01

    assert evaluate(*options).code == 0

    failed = [row for row in read_rows(OUTPUT) if row.error]

    assert {row.settings["lr"] for row in failed} == {1e30}
    assert len(failed) == 2
    assert failed[0].scores == {}

    printed = succeeded("report", OUTPUT).stdout

    assert "Left out, for an error: knn n_select=3 lr=1e+30" in printed


def test_a_prompt_of_one_token_has_no_score_and_stops_nothing(
    evaluate: Evaluate, prompts: Path
) -> None:
    lines = prompts.read_text().splitlines(keepends=True)[:2]
    prompts.write_text("".join([*lines, '{"text": "A"}\n']))
    result = evaluate("--method", "knn", "--limit", 3)

    assert result.code == 0, result.stderr
    assert sorted(len(row.scores) for row in read_rows(OUTPUT)) == [0, 1, 1]
    assert "Means over 2 held-out prompts" in result.stdout
    assert "1 prompt left out" in result.stdout


def test_a_file_says_what_to_run_and_options_take_the_place_of_its_values(
    evaluate: Evaluate, tmp_path: Path
) -> None:
    grid = {"method": ["knn", "sift"], "n_select": [1, 2]}
    file = tmp_path / "grid.json"
    file.write_text(json.dumps({"limit": 1, "settings": [grid]}))

    assert evaluate("--config", file, "--refresh", 1).code == 0

    settings = [row.settings for row in read_rows(OUTPUT)]

    assert {each["method"] for each in settings} == {"knn", "sift"}
    # The fixture sets n_select, lr and limit.
    assert {each["n_select"] for each in settings} == {3}
    assert len(read_rows(OUTPUT)) == 4


def test_a_folder_becomes_evidence(
    models_of: list[object], texts: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    for number in range(16):
        lines = [f"{number} {text}" for text in texts[:40]]
        (folder / f"{number}.md").write_text("\n".join(lines))

    (folder / "photo.jpg").write_bytes(b"\xff\xd8\0")
    arguments = ["evaluate", *models_of, "--corpus", folder]
    # One prompt has the defaults. Scoring with n-grams would take most of the time of the others.
    faster = [*arguments, "--ngrams", 0]
    result = succeeded(*faster)
    rows = read_rows(Path("results.jsonl"))
    held_out = list(dict.fromkeys(row.domain for row in rows))

    # One file in eight.
    assert len(held_out) == 2
    assert f" of {listed(held_out)}\n" in result.stderr
    assert "\n10 of 12 held-out prompts, of " in result.stderr
    assert "1 skipped (photo.jpg: not UTF-8 text)" in result.stderr

    [datastore] = (tmp_path / "hullft_datastores").iterdir()
    stored = "\0".join(Datastore.open(datastore).texts)
    for name in held_out:
        passages = passages_of((folder / name).read_text())
        assert not any(passage in stored for passage in passages)

    table = result.stdout.removeprefix("results.jsonl\n")

    assert "no adaptation" in table
    assert "\n shared " in table
    assert "\n train_on_" in table
    assert "The continuation comes after the prompt" in table
    for row in rows:
        trains_on_prompt = "train_on_prompt" in row.settings
        assert ("prompt" in row.scores) != trains_on_prompt

    assert succeeded("report", "results.jsonl").stdout == table

    written = {path: path.stat().st_mtime_ns for path in datastore.iterdir()}
    succeeded(*arguments, "--output", "again.jsonl", "--limit", 1)
    retrieved = {"context": 5, "context_following": 1, "ngrams": 1.0, "pool_size": 200}
    steps = {"refresh": 2, "train_on_prompt": 2, "lr": 2.5e-4}

    assert [row.settings for row in read_rows(Path("again.jsonl"))] == [
        retrieved,
        retrieved | steps,
    ]
    assert {path: path.stat().st_mtime_ns for path in datastore.iterdir()} == written

    # The number of steps leaves the row without them.
    few = ["--n-select", 2, "--output", "few.jsonl", "--limit", 1]
    succeeded(*faster, *few)

    few_rows = read_rows(Path("few.jsonl"))

    assert {row.settings.get("n_select") for row in few_rows} == {None, 2}

    [name, _] = held_out
    fewer = ["--exclude", name, "--output", "fewer.jsonl", "--limit", 1]

    assert name not in succeeded(*faster, *fewer).stderr

    refused = hullft_ops(*arguments, "--output", folder / "rows.jsonl")

    assert "rows.jsonl is in the corpus" in refused.last


def test_a_corpus_of_one_document_has_no_prompts(models_of: list[object]) -> None:
    Path("one.txt").write_text("the only text " * 9)
    result = hullft_ops("evaluate", *models_of, "--corpus", "one.txt")

    assert result.code == 2
    assert "corpus one.txt: 1 document: one to hold out must have" in result.last


def test_rows_of_another_model_are_refused(evaluate: Evaluate) -> None:
    assert evaluate("--method", "knn").code == 0

    before = OUTPUT.read_bytes()
    result = evaluate("--method", "knn", "--seed", 1)

    assert result.code == 2
    assert "holds rows of another model, tokenizer, datastore" in result.last
    assert OUTPUT.read_bytes() == before


def test_the_grid_file_is_not_the_output(evaluate: Evaluate, tmp_path: Path) -> None:
    grid = tmp_path / "grid.json"
    grid.write_text("{}")

    assert "is the input" in evaluate("--config", grid, "--output", grid).last


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prompts", "nowhere"], "No such file or directory"),
        (["--embedder", DEFAULT_EMBEDDER], "on the command line with --embedder"),
        (["--config", "nowhere"], "No such file or directory: 'nowhere'"),
    ],
)
def test_what_cannot_be_ends_with_one_line(
    options: list[object], message: str, evaluate: Evaluate
) -> None:
    result = evaluate(*options)

    assert result.code == 2
    assert result.last.startswith("hullft-ops evaluate: ")
    assert message in result.last
    assert not OUTPUT.exists()


def test_prompts_need_a_store(models_of: list[object], prompts: Path) -> None:
    result = hullft_ops("evaluate", *models_of, "--prompts", prompts)
    assert "store and prompts must be given together" in result.last
    assert "loading" not in result.stderr


def test_a_report_of_the_rows(evaluate: Evaluate) -> None:
    result = evaluate("--method", "knn", "hullft", "--context", 0)
    printed = succeeded("report", OUTPUT).stdout

    assert result.stdout == f"{OUTPUT}\n{printed}"
    assert "Means over 2 held-out prompts" in printed
    assert "\n knn " in printed


def test_results_without_rows_have_no_report() -> None:
    assert "Is a directory: '.'" in hullft_ops("report", ".").last

    OUTPUT.touch()
    result = hullft_ops("report", OUTPUT)

    assert result.code == 2
    assert "results rows.jsonl: has no rows" in result.last

    rows = result_row("p"), result_row("q", run="another")
    OUTPUT.write_text("".join(f"{row.model_dump_json()}\n" for row in rows))
    result = hullft_ops("report", OUTPUT)

    assert result.code == 2
    assert "results rows.jsonl: rows must be of one run, got 2" in result.last
