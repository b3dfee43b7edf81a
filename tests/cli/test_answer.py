"""``hullft-ops answer``: what it reads, what it writes, and how a killed run goes on."""

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from command import hullft_ops, succeeded
from hullft_ops.cli.answer import Answer, read_prompts
from hullft_ops.ttft import (
    Datastore,
    TestTimeFinetuner,
    load_embedder,
    load_model,
    train_adapter,
)
from hullft_ops.ttft.errors import InputError
from hullft_ops.ttft.records import read_records

PROMPTS = ["the cat sat", "a dog", "the cat sat on the red mat", "a tree", "a dog"]
OUTPUT = Path("answers.jsonl")
LENGTH = ["--max-new-tokens", 8]
ALONE = ["--n-select", 0, "--context", 0]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.jsonl"
    lines = [json.dumps({"id": n, "prompt": text}) for n, text in enumerate(PROMPTS)]
    file.write_text("\n".join(lines))
    return file


def answers() -> dict[str, str]:
    return {str(row.prompt): row.answer for row in read_records(OUTPUT, Answer)}


@pytest.mark.parametrize("n_select", [0, 3])
def test_it_writes_what_the_finetuner_generates(
    n_select: int,
    prompts: Path,
    models_of: list[object],
    model_directory: Path,
    embedder_directory: Path,
    store: Path,
) -> None:
    options = {"n_select": n_select, "context": 1, "lr": 0.02}
    words = ["--n-select", n_select, "--context", 1, "--lr", 0.02, *LENGTH]
    inputs = ["answer", prompts, *models_of, "--store", store]
    succeeded(*inputs, *words, "--output", OUTPUT)
    finetuner = TestTimeFinetuner(
        *load_model(str(model_directory)),
        Datastore.open(store),
        load_embedder(str(embedder_directory)),
        **options,
    )
    assert answers() == {
        prompt: finetuner.generate(prompt, max_new_tokens=8, do_sample=False)
        for prompt in PROMPTS
    }


def test_a_killed_run_goes_on(prompts: Path, model_directory: Path) -> None:
    words = ["answer", prompts, "--model", model_directory, *ALONE, *LENGTH]
    words += ["--batch-size", 2, "--output", OUTPUT]
    succeeded(*words)
    whole, content = answers(), OUTPUT.read_bytes()
    assert len(whole) == 4

    first, second, *_ = content.splitlines(keepends=True)
    OUTPUT.write_bytes(first + second[:40])
    assert "4 prompts, 1 answered before" in succeeded(*words).stderr
    assert OUTPUT.read_bytes().startswith(first)
    assert answers() == whole

    before = OUTPUT.read_bytes()
    assert "4 prompts, 4 answered before" in succeeded(*words).stderr
    result = hullft_ops(*words, "--max-new-tokens", 9)

    assert result.code == 2
    assert "holds rows of another model, tokenizer, datastore, embedder" in result.last
    assert OUTPUT.read_bytes() == before


def test_answers_of_another_adapter_are_refused(
    prompts: Path, model_directory: Path, store: Path
) -> None:
    for seed in (0, 1):
        model, tokenizer = load_model(str(model_directory))
        options = {"rank": 2, "lr": 0.1, "seed": seed}
        path = Path(f"adapter_{seed}")
        train_adapter(model, tokenizer, Datastore.open(store), path, **options)
    words = ["answer", prompts, "--model", model_directory, *ALONE, *LENGTH]
    words += ["--output", OUTPUT, "--adapter", "adapter"]
    Path("adapter_0").rename("adapter")
    succeeded(*words)
    with_adapter = answers()
    Path("adapter").rename("adapter_0")
    Path("adapter_1").rename("adapter")

    assert (
        "another model, tokenizer, datastore, embedder, ad" in hullft_ops(*words).last
    )

    succeeded(*words[:-2], "--output", "plain.jsonl")
    plain = read_records(Path("plain.jsonl"), Answer)
    assert {str(row.prompt): row.answer for row in plain} != with_adapter


def read(content: str, column: str = "prompt", name: str = "prompts.jsonl") -> Any:
    Path(name).write_text(content)
    return read_prompts(name, column)


def test_prompts_are_texts_or_conversations(monkeypatch: pytest.MonkeyPatch) -> None:
    chat = [{"role": "user", "content": "a dog"}]
    lines = [{"prompt": "a"}, {"messages": chat}, {"prompt": chat}, {"prompt": "a"}]
    content = "\n\n".join(map(json.dumps, lines))
    assert read(content) == ["a", chat]
    assert read('{"question": "b"}\n', column="question") == ["b"]

    text = "a cat \r\n\n{a} dog\n"
    assert read(text, name="prompts.txt") == ["a cat ", "{a} dog"]
    for piped, expected in ((text, ["a cat ", "{a} dog"]), (content, ["a", chat])):
        stdin = SimpleNamespace(buffer=io.BytesIO(piped.encode()))
        monkeypatch.setattr(sys, "stdin", stdin)
        assert read_prompts("-", "prompt") == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("\n", "there is none"),
        ('{"prompt": "a"}\n{', "line 2: Invalid JSON"),
        ('["a"]', "line 1: must be an object"),
        ('{"text": "a", "id": 3}', "line 1: has no column prompt: .* of text, id"),
        ('{"prompt": 3}', "line 1: generate: prompt must be a str, got int"),
        ('{"prompt": " "}', "line 1: select: prompt must have text"),
        (
            '{"messages": [{"role": "system", "content": "a"}]}',
            "line 1: .* of the user",
        ),
    ],
)
def test_a_line_without_a_prompt_is_named(content: str, message: str) -> None:
    with pytest.raises(InputError, match=f"^prompts prompts.jsonl: {message}"):
        read(content)


def test_what_cannot_be_answered_is_refused_before_the_work(
    prompts: Path, model_directory: Path
) -> None:
    words = ["answer", prompts, "--model", model_directory, "--output", OUTPUT]
    for options, message in (
        ([], "give one of --store and --corpus, or --n-select 0 --context 0"),
        ([*ALONE, "--chat"], "chat: the model's tokenizer has no chat template"),
        ([*ALONE, "--batch-size", 0], "answer: --batch-size must be in 1.."),
        ([*ALONE, "--max-new-tokens", 256], "answer: --max-new-tokens must be in 1.."),
    ):
        result = hullft_ops(*words, *options)

        assert result.code == 2
        assert message in result.last
        assert not OUTPUT.exists()
