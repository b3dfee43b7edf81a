"""``hullft-ops adapt`` on a tiny random model."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import GPT2LMHeadModel
from typer.testing import CliRunner, Result

from hullft_ops.cli.app import app
from hullft_ops.ttft import (
    BitsPerByte,
    Datastore,
    bits_per_byte,
    finetuner,
    load_embedder,
    load_model,
)
from hullft_ops.ttft.errors import NonFiniteLossError
from tiny_gguf import tiny_llama, write_gguf

PROMPT = "the cat sat on the red mat"


@pytest.fixture(scope="module")
def store(
    embedder_directory: Path,
    corpus_file: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    lines = corpus_file.read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines[:10]]
    path = tmp_path_factory.mktemp("store") / "store"
    Datastore.build(texts, load_embedder(str(embedder_directory)), path, progress=False)
    return path


@pytest.fixture
def own(model_directory: Path, embedder_directory: Path, store: Path) -> list[object]:
    arguments = ["--model", model_directory, "--embedder", embedder_directory]
    return [*arguments, "--store", store, "--lr", 0.01, "--prompt", PROMPT]


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["adapt", *map(str, arguments)])


def test_it_shows_what_was_retrieved_and_what_that_gained(
    own: list[object], store: Path
) -> None:
    result = invoke(*own, "--n-select", 6)
    assert result.exit_code == 0, result.output
    rows = re.findall(
        r"^ +(\d+) +([01]\.\d{3}) +(\d+) +(\w.*)", result.stdout, re.MULTILINE
    )
    assert f"{len(rows)} texts by hullft" in result.stdout
    assert sum(float(weight) for _, weight, _, _ in rows) == pytest.approx(1, abs=0.01)
    assert sum(int(count) for _, _, count, _ in rows) == 6
    texts = Datastore.open(store).texts
    assert all(texts[int(index)].startswith(text[:20]) for index, _, _, text in rows)
    passes = sum((int(count) + 1) // 2 for _, _, count, _ in rows)
    assert f"6 steps with {passes} gradients" in result.stdout
    found = re.search(r"prompt: (\d\.\d+) before, (\d\.\d+) after", result.stdout)
    assert found is not None
    assert float(found[2]) < float(found[1])
    assert result.stdout.rstrip().endswith("after")


def test_a_gguf_file_is_dequantized_once_and_said_so(
    own: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = write_gguf(tmp_path / "tiny.gguf", tiny_llama())
    own[own.index("--model") + 1] = file
    first, second = invoke(*own, "--n-select", 4), invoke(*own, "--n-select", 4)
    assert first.exit_code == second.exit_code == 0, first.output
    before, after = first.stderr.splitlines()
    assert before.startswith(f"dequantizing {file}, once: ")
    assert after.startswith("dequantized in ")
    assert str(tmp_path / "cache" / "hullft_ops" / "gguf") in after
    assert second.stderr == ""
    scores = [
        line for line in first.stdout.splitlines() if line.startswith("bits per byte")
    ]
    assert (
        scores
        == [s for s in second.stdout.splitlines() if s.startswith("bits per byte")]
        != []
    )
    file.write_bytes(file.read_bytes()[:-1])
    refused = invoke(*own)
    assert refused.exit_code == 2
    assert refused.stderr.startswith(
        f"hullft-ops adapt: model {file}: must be a whole GGUF model"
    )


def test_texts_before_the_prompt_need_no_step(own: list[object]) -> None:
    found = {}
    for steps, context in ((0, 0), (0, 1), (4, 1)):
        result = invoke(*own, "--n-select", steps, "--context", context, "--generate")
        assert result.exit_code == 0, result.output
        assert (" texts by " in result.stdout) == (steps > 0)
        listed = re.search(
            r"^texts before the prompt, nearest last: \d+$", result.stdout, re.M
        )
        assert (listed is not None) == (context > 0)
        scores = re.search(r"prompt: (\d\.\d+) before, (\d\.\d+) after", result.stdout)
        assert scores is not None
        found[steps, context] = scores.groups()
    assert found[0, 0][0] == found[0, 0][1] == found[0, 1][0]
    assert len({after for _, after in found.values()}) == 3


@pytest.mark.parametrize(("method", "steps"), [("knn", 10), ("hullft", 12)])
def test_fewer_texts_than_steps_are_said_in_a_line(
    own: list[object], method: str, steps: int
) -> None:
    result = invoke(*own, "--method", method, "--n-select", 12)
    assert result.exit_code == 0, result.output
    assert f"{steps} steps with" in result.stdout
    (said,) = (line for line in result.stderr.splitlines() if "n_select" in line)
    assert said.startswith(
        "hullft-ops adapt: TestTimeFinetuner: the pool has fewer texts "
    )
    assert "10 of 12" in said
    assert "UserWarning" not in result.output


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (3, "out of memory while scoring the prompt: give a shorter --prompt"),
        (4, "adapting on texts of up to"),
        (10, "out of memory while generating: lower --max-new-tokens"),
    ],
)
def test_out_of_memory_says_what_to_lower(
    own: list[object], call: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The forward passes: two look whether the model is causal, one scores, six adapt, one scores,
    # the others generate.
    calls, forward = [], GPT2LMHeadModel.forward

    def counted(*arguments: Any, **keywords: Any) -> Any:
        calls.append(arguments)
        if len(calls) == call:
            torch.empty(2**60, dtype=torch.uint8)
        return forward(*arguments, **keywords)

    monkeypatch.setattr(GPT2LMHeadModel, "forward", counted)
    result = invoke(*own, "--n-select", 6, "--refresh", 1, "--generate")
    assert result.exit_code == 2, result.output
    assert said in result.stderr
    assert "Traceback" not in result.output
    assert isinstance(result.exception, SystemExit)


def test_it_says_which_steps_its_budget_leaves_out(own: list[object]) -> None:
    steps, gains = {}, {}
    for name, arguments in (
        ("all", []),
        ("enough", ["--seconds", 1e6]),
        ("none", ["--seconds", 1e-6]),
    ):
        result = invoke(*own, "--n-select", 6, *arguments)
        assert result.exit_code == 0, result.output
        steps[name] = re.findall(
            r"^ +\d+ +[01]\.\d{3} +(\d+)", result.stdout, re.MULTILINE
        )
        gains[name] = re.findall(r"prompt: (\S+) before, (\S+) after", result.stdout)[0]
        left_out = "6 more steps did not fit into 1e-06 s" in result.stdout
        assert (
            (name == "none")
            == left_out
            == ("0 steps with 0 gradients" in result.stdout)
        )
    assert steps["enough"] == steps["all"] != steps["none"]
    assert set(steps["none"]) == {"0"}
    assert gains["enough"] == gains["all"]
    assert len(set(gains["none"])) == 1


@pytest.mark.parametrize(
    ("bits", "hurt"),
    [((3.55, 4.04), True), ((3.55, math.nan), True), ((3.55, 3.55), False)],
)
def test_it_says_when_adapting_hurts(
    own: list[object],
    bits: tuple[float, float],
    hurt: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scores = iter(
        [BitsPerByte(nll=value * math.log(2), bytes=1, tokens=1) for value in bits]
    )
    monkeypatch.setattr(finetuner, "score_behind", lambda *_: next(scores))
    result = invoke(*own)
    assert result.exit_code == 0, result.output
    assert (
        "\nAdapting hurt: the model predicts this prompt worse" in result.stdout
    ) == hurt


def test_a_saved_adaptation_serves_in_plain_peft(
    own: list[object], model_directory: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "mine"
    result = invoke(*own, "--n-select", 6, "--save", folder, "--save-rank", 4)
    assert result.exit_code == 0, result.output
    said = re.search(
        r"saved to (.*): a LoRA of rank 4 with (\d+\.\d) % of the squared change, (\d\.\d{4}) bits "
        r"per byte; it leaves out transformer.wte.weight, transformer.wpe.weight and \d+ more",
        result.stdout,
    )
    assert said is not None, result.output
    assert said[1] == str(folder)
    assert 0 < float(said[2]) < 100
    base, tokenizer = load_model(model_directory)
    loaded = PeftModel.from_pretrained(base, folder)
    assert loaded.peft_config["default"].base_model_name_or_path == str(model_directory)
    assert bits_per_byte(loaded, tokenizer, PROMPT) == pytest.approx(
        float(said[3]), abs=1e-4
    )
    again = invoke(*own, "--n-select", 6, "--save", folder)
    assert (again.exit_code, "must name a new folder" in again.stderr) == (2, True)
    stepless = invoke(*own, "--n-select", 0, "--save", tmp_path / "none")
    assert (
        stepless.exit_code,
        "--save needs n_select" in stepless.stderr,
    ) == (2, True)


def test_it_continues_the_prompt(own: list[object]) -> None:
    result = invoke(*own, "--generate", "--max-new-tokens", 12)
    assert result.exit_code == 0, result.output
    _, _, continued = result.stdout.partition(" after\n")
    # The model and its tokenizer know single bytes.
    assert 1 < len(continued.encode()) <= 12 * len("\ufffd".encode()) + 1


def test_the_continuation_is_printed_as_it_is(
    own: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    wrote = "\tdef f():\r\n\t\treturn '[bold]" + "x " * 200 + "' \x0c\n\n  end  "
    monkeypatch.setattr(
        finetuner.TestTimeFinetuner, "continuation", lambda *_, **__: wrote
    )
    result = invoke(*own, "--generate")
    assert result.exit_code == 0, result.output
    assert result.stdout_bytes.decode().endswith(f" after\n{wrote}\n")


def test_a_configuration_says_what_the_command_line_does_not(
    own: list[object], tmp_path: Path
) -> None:
    config = tmp_path / "tuned.json"
    settings = {"method": "sift", "n_select": 5, "refresh": 1, "noise": 0.2}
    config.write_text(json.dumps({"settings": settings}), encoding="utf-8")
    result = invoke(*own, "--config", config, "--refresh", 6)
    assert result.exit_code == 0, result.output
    (support,) = re.findall(r"(\d+) texts by sift", result.stdout)
    assert f"5 steps with {support} gradients" in result.stdout


def test_a_model_without_a_limit_takes_one(
    own: list[object], unlimited_directory: Path, tmp_path: Path
) -> None:
    bloom = [
        *own,
        "--model",
        unlimited_directory,
        "--n-select",
        4,
        "--prompt",
        3 * PROMPT,
    ]
    asked = invoke(*bloom)
    assert (asked.exit_code, "max_length must be given" in asked.stderr) == (2, True)
    config = tmp_path / "settings.json"
    config.write_text(json.dumps({"settings": {"max_length": 16}}), encoding="utf-8")
    texts = {
        name: invoke(*bloom, *arguments)
        for name, arguments in {
            "16": ["--max-length", 16],
            "config": ["--config", config, "--method", "hullft"],
            "instead": ["--config", config, "--max-length", 24],
            "24": ["--max-length", 24, "--generate", "--max-new-tokens", 23],
        }.items()
    }
    assert {result.exit_code for result in texts.values()} == {0}, texts
    scores = {
        name: re.findall(r"prompt: (.*)", text.stdout) for name, text in texts.items()
    }
    assert scores["16"] == scores["config"] != scores["instead"] == scores["24"]


def test_texts_end_where_it_is_said_and_scoring_goes_on(own: list[object]) -> None:
    before = [
        re.findall(
            r"prompt: (\S+) before, (\S+) after", invoke(*own, *arguments).stdout
        )[0]
        for arguments in ([], ["--max-length", 8])
    ]
    assert before[0][0] == before[1][0]
    assert before[0][1] != before[1][1]


def test_texts_at_random_follow_the_seed(own: list[object], tmp_path: Path) -> None:
    config, found = tmp_path / "random.json", []
    settings = {"method": "random", "n_select": 5, "refresh": 1}
    for seed in (1, 1, 2):
        config.write_text(
            json.dumps({"settings": settings, "seed": seed}), encoding="utf-8"
        )
        result = invoke(*own, "--config", config)
        assert result.exit_code == 0, result.output
        assert "texts by random" in result.stdout
        found.append(re.findall(r"^ +(\d+) +[01]\.\d{3}", result.stdout, re.MULTILINE))
    first, again, other = found
    assert len(first) == 5
    assert first == again
    assert first != other


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--store", "/no/such/store"], "store /no/such/store: "),
        (["--method", "nearest"], "method must be one of hullft, "),
        (["--method", ""], "method must be one of hullft, "),
        (["--n-select", -1], "n_select must be in 0..100000, got -1"),
        (["--n-select", 10**9], "n_select must be in 0..100000, got 1000000000"),
        (["--context", -1], "context must be in 0..2147483647, got -1"),
        (["--max-length", 257], "max_length is 257, the model's context is 256"),
        (["--seconds", 0], "seconds must be above 0, got 0"),
        (["--seconds", -1], "seconds must be above 0, got -1"),
        (["--seconds", "nan"], "seconds must be above 0, got nan"),
        (["--max-length", 1], "max_length must be in 2..2147483647, got 1"),
        (["--prompt", " "], "the prompt must have text, got ' '"),
        (["--model", "/no/such/model"], "model /no/such/model: no such directory"),
        (["--save", "."], "--save must name a new folder, . exists"),
        (["--generate", "--max-new-tokens", 256], "max_new_tokens must be in 1..255"),
    ],
)
def test_what_cannot_be_met_ends_with_one_line(
    own: list[object], arguments: list[object], message: str
) -> None:
    result = invoke(*own, *arguments)
    assert result.exit_code == 2, result.output
    last = result.stderr.splitlines()[-1]
    assert last.startswith("hullft-ops adapt: ")
    assert message in last


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_select": [5, 10]}, "adapt takes one configuration, got 2"),
        (
            {"method": "sift", "noise": 1.0, "reuse": "global"},
            "reuse is for evaluate alone",
        ),
        ({"n_select": "20"}, "n_select must be an int, got str"),
        ({"refresh": "2"}, "refresh must be an int, got str"),
        ({"method": {}}, "method must be "),
        ({"max_grad_norm": "1"}, "max_grad_norm must be "),
        ({"method": "sift", "noise": "0.1"}, "noise must be "),
    ],
)
def test_settings_that_it_cannot_take_are_refused(
    own: list[object], tmp_path: Path, settings: dict[str, object], message: str
) -> None:
    config = tmp_path / "grid.json"
    config.write_text(json.dumps({"settings": settings}), encoding="utf-8")
    result = invoke(*own, "--config", config)
    assert (result.exit_code, message in result.stderr) == (2, True), result.stderr


def test_without_a_store_it_is_asked_for() -> None:
    result = invoke("--prompt", PROMPT)
    assert (result.exit_code, "store must be given" in result.stderr) == (2, True)


@pytest.mark.parametrize(
    ("owner", "name", "error", "message"),
    [
        (
            "SupportTrainer",
            "_pass",
            MemoryError(),
            "out of memory, adapting on texts of up to",
        ),
        ("SupportTrainer", "_pass", NonFiniteLossError("loss is nan"), "loss is nan"),
        ("SupportSelector", "_choose", MemoryError(), "out of memory, selecting texts"),
    ],
)
def test_what_fails_on_the_way_ends_with_one_line(
    own: list[object],
    monkeypatch: pytest.MonkeyPatch,
    owner: str,
    name: str,
    error: Exception,
    message: str,
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(getattr(finetuner, owner), name, fail)
    result = invoke(*own)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()[-1:]
    assert line.startswith("hullft-ops adapt: ")
    assert message in line
