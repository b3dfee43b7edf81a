"""``hullft-ops demo`` from the command line to its files, on a tiny random model."""

import json
import math
import os
import re
import shutil
import struct
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from hullft_ops.cli.app import app
from hullft_ops.ttft import Datastore, bits_per_byte
from hullft_ops.ttft.evaluation import runner
from hullft_ops.ttft.evaluation.comparison import write_json
from hullft_ops.ttft.evaluation.corpus import HELD_OUT_ONE_IN, Prompt, choose_prompts
from hullft_ops.ttft.evaluation.runner import Evaluator
from hullft_ops.ttft.model.loading import load_model

PROMPTS = 3
STEPS = 6
# For what does not depend on the numbers.
BRIEF = ["--prompts", 1, "--n-select", 2]
METHODS = ["none", "knn", "hullft_refresh1", "hullft_refresh2"]


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["demo", *map(str, arguments)])


@pytest.fixture(scope="session")
def own(
    model_directory: Path, embedder_directory: Path, corpus_file: Path
) -> list[object]:
    """The options of a run on the user's own model, embedder and corpus."""
    arguments = ["--model", model_directory, "--embedder", embedder_directory]
    return [
        *arguments,
        "--corpus",
        corpus_file,
        "--prompts",
        PROMPTS,
        "--n-select",
        STEPS,
    ]


@pytest.fixture(scope="session")
def first(
    own: list[object], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Result, Path]:
    output = tmp_path_factory.mktemp("first") / "out"
    return invoke(*own, "--output", output, "--lr", 0.01), output


@pytest.fixture(scope="session")
def written(first: tuple[Result, Path]) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(
        (first[1] / "demo.json").read_text(encoding="utf-8")
    )
    return result


def test_it_prints_the_table_and_what_it_left_out(first: tuple[Result, Path]) -> None:
    result, output = first
    assert result.exit_code == 0
    for shown in ("no adaptation", "kNN", "HullFT refresh 1", "HullFT refresh 2"):
        assert shown in result.stdout
    assert f"Mean of {PROMPTS} held-out prompts" in result.stdout
    assert str(output / "demo.json") in result.stdout
    said = " ".join(result.stderr.split())
    assert said.startswith("reading /")
    assert "4 lines left out (line 11: not JSON; line 12: no string" in said
    assert "building it" in said


def test_it_writes_three_things(first: tuple[Result, Path]) -> None:
    output = first[1]
    assert sorted(path.name for path in output.iterdir()) == [
        "datastore",
        "demo.json",
        "demo.png",
    ]
    png = (output / "demo.png").read_bytes()
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    assert struct.unpack(">II", png[16:24]) == (1200, 750)


def test_it_says_how_long_it_takes_and_continues_a_prompt(
    first: tuple[Result, Path], written: dict[str, Any]
) -> None:
    result = first[0]
    assert re.search(
        r"about \d+ s: \d+ prompts, \d+ passes each, [\d.e-]+ s a pass", result.stderr
    )
    text, before, after = written["continued"].values()
    assert text == written["prompts"][0]["text"][: len(text)]
    assert before != after
    for label in ("no adaptation", "HullFT refresh 2"):
        assert f"\nContinued, {label}:\n" in result.stdout


def test_json_says_what_was_run(written: dict[str, Any], own: list[object]) -> None:
    config = written["config"]
    assert (config["prompts"], config["steps"], config["seed"]) == (PROMPTS, STEPS, 0)
    assert (config["lr"], config["model"]) == (0.01, str(own[1]))
    names = (
        "model device corpus embedder prompts steps lr max_length output datastore seed"
    )
    names += " allow_missing_weights model_parameters pool_size threads"
    assert config.keys() == set(names.split())
    corpus = written["corpus"]
    assert corpus["documents"] == 60
    assert corpus["held_out_documents"] == math.ceil(60 / HELD_OUT_ONE_IN)
    assert [line.partition(":")[0] for line in corpus["malformed_lines"]] == [
        f"line {number}" for number in range(11, 15)
    ]
    assert written["datastore"]["reused"] is False
    assert written["environment"]["versions"]["torch"]


def test_json_has_every_run_of_every_prompt(written: dict[str, Any]) -> None:
    assert len(written["prompts"]) == PROMPTS
    for prompt in written["prompts"]:
        assert list(prompt["runs"]) == METHODS
        assert prompt["runs"]["none"]["report"] is None
        for method in METHODS[1:]:
            report = prompt["runs"][method]["report"]
            refresh = 2 if method == "hullft_refresh2" else 1
            assert report["optimizer_steps"] == sum(report["counts"]) == STEPS
            passes = sum(math.ceil(count / refresh) for count in report["counts"])
            assert report["forward_backward_passes"] == passes
            assert report["seconds_finetune"] > 0
    for method in METHODS:
        bits = [
            prompt["runs"][method]["bits_per_byte"] for prompt in written["prompts"]
        ]
        assert written["methods"][method]["bits_per_byte"] == pytest.approx(
            fmean(bits), rel=1e-12
        )
        for stage in ("seconds_embed", "seconds_search") if method != "none" else ():
            taken = [
                prompt["runs"][method]["report"][stage] for prompt in written["prompts"]
            ]
            assert written["methods"][method][stage] == pytest.approx(
                fmean(taken), rel=1e-12
            )
    none, knn = (written["methods"][method]["bits_per_byte"] for method in METHODS[:2])
    assert written["methods"]["knn"]["relative_to_none"] == pytest.approx(
        knn / none - 1
    )
    assert written["verdicts"]["knn_below_none"] is (knn < none)


def test_adapting_helps_even_a_random_model(written: dict[str, Any]) -> None:
    """Six steps at a high rate teach the letters of the corpus, whichever texts are taken."""
    assert written["verdicts"]["knn_below_none"]
    assert written["verdicts"]["hullft_below_none"]
    assert written["verdicts"]["prompts_below_none"]["hullft_refresh1"] == PROMPTS


def test_its_methods_keep_one_copy_of_the_weights(
    own: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = []
    prepare = Evaluator.prepare

    def look(evaluator: Evaluator, *settings: Any) -> None:
        prepare(evaluator, *settings)
        kept.extend(finetuner._snapshot for finetuner in evaluator._finetuners.values())

    monkeypatch.setattr(Evaluator, "prepare", look)
    assert invoke(*own, *BRIEF, "--output", tmp_path).exit_code == 0
    assert len(kept) == 3
    assert all(snapshot is kept[0] for snapshot in kept)


def test_no_prompt_is_in_the_store(written: dict[str, Any]) -> None:
    texts = set(Datastore.open(written["datastore"]["path"]).texts)
    assert len(texts) == written["corpus"]["passages"]
    assert not texts & {prompt["text"] for prompt in written["prompts"]}


def test_a_corpus_of_fewer_texts_than_steps_is_enough(
    own: list[object], corpus_file: Path, tmp_path: Path
) -> None:
    few = tmp_path / "few.jsonl"
    few.write_text("\n".join(corpus_file.read_text().splitlines()[14:24]))
    result = invoke(
        *own, "--corpus", few, "--prompts", 1, "--n-select", 12, "--output", tmp_path
    )
    assert result.exit_code == 0, result.output
    written = json.loads((tmp_path / "demo.json").read_text(encoding="utf-8"))
    texts = written["corpus"]["passages"]
    assert written["methods"]["knn"]["optimizer_steps"] == texts < 12
    assert written["methods"]["hullft_refresh1"]["optimizer_steps"] == 12
    assert f"method 'knn' takes {texts} steps, one on each" in result.stderr
    assert result.stderr.count("method 'hullft' takes all steps on these") == 1


def test_a_second_run_reuses_the_datastore_and_gives_the_same_numbers(
    first: tuple[Result, Path],
    written: dict[str, Any],
    own: list[object],
    tmp_path: Path,
) -> None:
    datastores = first[1] / "datastore"
    before = {path: path.stat().st_mtime_ns for path in datastores.rglob("*")}
    result = invoke(*own, "--output", tmp_path, "--lr", 0.01, "--datastore", datastores)
    assert result.exit_code == 0
    assert "passages found" in result.stderr
    assert {path: path.stat().st_mtime_ns for path in datastores.rglob("*")} == before
    again = json.loads((tmp_path / "demo.json").read_text(encoding="utf-8"))
    assert again["datastore"]["reused"] is True
    for one, other in zip(written["prompts"], again["prompts"], strict=True):
        assert one["text"] == other["text"]
        for method in METHODS:
            bits = one["runs"][method]["bits_per_byte"]
            assert bits == other["runs"][method]["bits_per_byte"]


def test_another_corpus_gets_its_own_datastore(
    first: tuple[Result, Path], own: list[object], corpus_file: Path, tmp_path: Path
) -> None:
    shutil.copytree(first[1] / "datastore", tmp_path / "datastore")
    [old] = (tmp_path / "datastore").iterdir()
    shorter = tmp_path / "shorter.jsonl"
    shorter.write_text("\n".join(corpus_file.read_text().splitlines()[:-8]))
    assert (
        invoke(*own, *BRIEF, "--corpus", shorter, "--output", tmp_path).exit_code == 0
    )
    [new] = set((tmp_path / "datastore").iterdir()) - {old}
    assert len(Datastore.open(new)) < len(Datastore.open(old))


def test_a_corrupt_datastore_is_built_again_and_said(
    first: tuple[Result, Path], own: list[object], tmp_path: Path
) -> None:
    shutil.copytree(first[1] / "datastore", tmp_path / "datastore")
    [embeddings] = tmp_path.rglob("*.f32")
    embeddings.write_bytes(b"not vectors")
    result = invoke(*own, *BRIEF, "--output", tmp_path)
    assert result.exit_code == 0
    assert "building it again" in " ".join(result.stderr.split())
    [path] = (tmp_path / "datastore").iterdir()
    assert len(Datastore.open(path)) > 0


def test_what_is_no_datastore_is_never_replaced(
    written: dict[str, Any], own: list[object], tmp_path: Path
) -> None:
    foreign = tmp_path / Path(written["datastore"]["path"]).name / "thesis.txt"
    foreign.parent.mkdir()
    foreign.write_text("years of work")
    result = invoke(*own, "--output", tmp_path / "out", "--datastore", tmp_path)
    assert result.exit_code == 2
    assert "is not a datastore" in result.stderr
    assert foreign.read_text() == "years of work"


def test_a_run_that_fails_leaves_the_old_files(
    own: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("demo.json", "demo.png"):
        (tmp_path / name).write_text("old")

    def fail(*_: object, **__: object) -> float:
        raise RuntimeError("the third prompt fails")

    monkeypatch.setattr(runner, "score_text", fail)
    assert isinstance(invoke(*own, "--output", tmp_path).exception, RuntimeError)
    assert [(tmp_path / name).read_text() for name in ("demo.json", "demo.png")] == [
        "old",
        "old",
    ]


def test_a_loss_that_is_not_finite_ends_with_one_line(
    own: list[object], tmp_path: Path
) -> None:
    result = invoke(*own, "--output", tmp_path, "--lr", 1e30)
    assert result.exit_code == 2
    last = result.stderr.splitlines()[-1]
    assert last.startswith("hullft-ops demo: ")
    assert "loss" in last
    assert [path.name for path in tmp_path.iterdir()] == ["datastore"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "/no/such/model"], "model /no/such/model: no such directory"),
        (
            ["--corpus", "/no/such/file"],
            "corpus /no/such/file: No such file or directory",
        ),
        (["--embedder", "./no-embedder"], "embedder ./no-embedder: no such directory"),
        (["--prompts", 0], "prompts must be at least 1, got 0"),
        (["--n-select", -1], "n_select must be in 1..100000, got -1"),
        (["--n-select", 10**9], "n_select must be in 1..100000, got 1000000000"),
        (["--lr", 0], "lr must be above 0 and finite, got 0.0"),
        (["--lr", "nan"], "lr must be above 0 and finite, got nan"),
        (["--lr", "inf"], "lr must be above 0 and finite, got inf"),
        (["--max-length", 1], "max_length must be at least 2, got 1"),
        (["--max-length", 257], ": max_length is 257, the model's context is 256"),
        (["--prompts", 1000], "need at least 1 and 1000 (prompts)"),
        (["--model", "no-such-model"], "model no-such-model: "),
        (["--embedder", "no-such-embedder"], "embedder no-such-embedder: "),
    ],
)
def test_what_cannot_be_met_ends_with_one_line(
    arguments: list[object], message: str, own: list[object], tmp_path: Path
) -> None:
    result = invoke(*own, "--output", tmp_path / "out", *arguments)
    assert result.exit_code == 2
    last = result.stderr.splitlines()[-1]
    assert last.startswith("hullft-ops demo: ")
    assert message in last
    assert not (tmp_path / "out").exists()


def test_a_model_without_a_limit_takes_one(
    own: list[object], unlimited_directory: Path, tmp_path: Path
) -> None:
    options = [*own, "--model", unlimited_directory, "--output", tmp_path / "out"]
    asked = invoke(*options)
    assert asked.exit_code == 2
    assert asked.stderr.splitlines()[-1] == (
        f"hullft-ops demo: model {unlimited_directory}: max_length must be given, neither model "
        "nor tokenizer has a limit"
    )
    assert not (tmp_path / "out").exists()
    result = invoke(*options, *BRIEF, "--max-length", 16)
    assert result.exit_code == 0, result.stderr
    written = json.loads((tmp_path / "out" / "demo.json").read_text(encoding="utf-8"))
    assert written["config"]["max_length"] == 16
    model, tokenizer = load_model(str(unlimited_directory), torch.device("cpu"))
    for prompt in written["prompts"]:
        scored = bits_per_byte(model, tokenizer, prompt["text"], max_length=16)
        assert prompt["runs"]["none"]["bits_per_byte"] == pytest.approx(
            scored, rel=1e-6
        )


def test_an_output_that_cannot_be_written_ends_with_one_line(
    own: list[object], tmp_path: Path
) -> None:
    (tmp_path / "out").write_text("a file")
    stores = tmp_path / "stores"
    result = invoke(*own, *BRIEF, "--output", tmp_path / "out", "--datastore", stores)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith(
        "hullft-ops demo: [Errno 17] File exists: "
    )


@pytest.mark.parametrize("content", ["", "\n", "not json\n", '{"text": ""}\n'])
def test_a_corpus_without_text_is_refused(
    content: str, own: list[object], tmp_path: Path
) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text(content)
    result = invoke(*own, "--corpus", empty, "--output", tmp_path / "out")
    assert result.exit_code == 2
    assert 'each line must be an object with a string "text"' in result.stderr
    assert len(result.stderr.splitlines()) == 2, "what it reads, and what is wrong"


def test_a_model_directory_without_a_model_is_refused(
    own: list[object], tmp_path: Path
) -> None:
    result = invoke(*own, "--model", tmp_path, "--output", tmp_path / "out")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith(
        f"hullft-ops demo: model {tmp_path}: "
    )


def test_a_model_whose_weights_are_cut_short_is_refused(
    own: list[object], model_directory: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(model_directory, broken)
    (broken / "model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\n"
    )
    result = invoke(*own, "--model", broken, "--output", tmp_path / "out")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith(
        f"hullft-ops demo: model {broken}: "
    )


def test_a_path_that_is_not_utf8_can_be_written(tmp_path: Path) -> None:
    place, file = Path(os.fsdecode(b"caf\xe9")), tmp_path / "demo.json"
    write_json({"output": place, "text": "é"}, file)
    assert json.loads(file.read_text()) == {"output": str(place), "text": "é"}


def test_prompts_take_turns_over_domains_and_follow_the_seed() -> None:
    held_out = [Prompt(f"text {i}", f"file {i % 4}") for i in range(20)]
    chosen = choose_prompts(held_out, 8, seed=0)
    assert sorted(prompt.domain for prompt in chosen) == sorted(
        p.domain for p in held_out[:8]
    )
    assert len({prompt.domain for prompt in chosen[:4]}) == 4
    assert chosen[:3] == choose_prompts(held_out[::-1], 3, seed=0)
    assert chosen != choose_prompts(held_out, 8, seed=1)
