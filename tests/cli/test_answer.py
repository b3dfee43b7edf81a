"""``hullft-ops answer``: what it reads, what it writes, and how a killed run goes on."""

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from command import hullft_ops, succeeded
from hullft_ops.cli.answer import Answer, prompts_in
from hullft_ops.ttft import Datastore, TestTimeFinetuner, load_embedder, load_model
from hullft_ops.ttft.records import read_records
from hullft_ops.ttft.validation import InputError

PROMPTS = ["the cat sat", "a dog", "the cat sat on the red mat", "a tree", "a dog"]
FILE, OUTPUT = Path("prompts.jsonl"), Path("answers.jsonl")


@pytest.fixture
def arguments(model_directory: Path) -> list[object]:
    lines = [json.dumps({"id": n, "prompt": text}) for n, text in enumerate(PROMPTS)]
    FILE.write_text("\n".join(lines))
    words = ["answer", FILE, "--output", OUTPUT, "--model", model_directory]
    alone = ["--train-on-prompt", 0, "--context", 0, "--ngrams", 0]
    return [*words, *alone, "--max-new-tokens", 8]


@pytest.mark.parametrize("n_select", [0, 3])
def test_it_writes_what_the_finetuner_generates(
    n_select: int,
    arguments: list[object],
    model_directory: Path,
    embedder_directory: Path,
    store: Path,
) -> None:
    arguments += ["--store", store, "--embedder", embedder_directory]
    arguments += ["--n-select", n_select, "--context", 1, "--lr", 0.02]
    arguments += ["--stop-at", "line"]
    succeeded(*arguments)
    finetuner = TestTimeFinetuner(
        *load_model(str(model_directory)),
        Datastore.open(store),
        load_embedder(str(embedder_directory)),
        n_select=n_select,
        context=1,
        ngrams=0,
        train_on_prompt=0,
        lr=0.02,
    )

    options = {"max_new_tokens": 8, "do_sample": False, "stop_at": "line"}

    assert {row.prompt: row.answer for row in read_records(OUTPUT, Answer)} == {
        prompt: finetuner.generate(prompt, **options) for prompt in PROMPTS
    }

    content = OUTPUT.read_bytes()

    assert "4 prompts, 4 answered before" in succeeded(*arguments).stderr

    result = hullft_ops(*arguments, "--max-new-tokens", 9)

    assert "another model, tokenizer, datastore, embedder or option" in result.last
    assert OUTPUT.read_bytes() == content


def test_a_prompt_may_have_a_suffix(arguments: list[object]) -> None:
    suffixes = ["", " on the mat", " on the rug"]
    rows = [{"prompt": "the cat", "behind": suffix} for suffix in suffixes]
    FILE.write_text("\n".join(map(json.dumps, rows)))
    result = succeeded(*arguments, "--suffix-column", "behind")

    assert "no tokens to fill in with" in result.stderr
    assert {row.suffix for row in read_records(OUTPUT, Answer)} == {*suffixes}

    again = succeeded(*arguments, "--suffix-column", "behind")

    assert "3 prompts, 3 answered before" in again.stderr


def test_datastores_of_other_documents_give_other_answers(
    arguments: list[object], texts: list[str]
) -> None:
    """What follows a passage in its document is read too."""
    for name, sources in (("a", ["x"] * 60), ("b", [f"{n}" for n in range(60)])):
        Datastore.build(texts, None, name, sources=sources)

    # Without vectors the search is by words, and needs no embedder.
    arguments += ["--context", 1, "--embedder", "missing"]
    succeeded(*arguments, "--store", "a")
    assert "4 answered before" in succeeded(*arguments, "--store", "a").stderr

    result = hullft_ops(*arguments, "--store", "b")

    assert "another model, tokenizer, datastore, embedder or option" in result.last


def test_prompts_are_texts_or_conversations(monkeypatch: pytest.MonkeyPatch) -> None:
    chat = [{"role": "user", "content": "a dog"}]
    lines = [{"asked": "a"}, {"messages": chat}, {"asked": chat}, {"asked": "a"}]
    FILE.write_text("\n\n".join(map(json.dumps, lines)))

    assert [*prompts_in(str(FILE), "asked").values()] == [("a", ""), (chat, "")]

    stdin = SimpleNamespace(buffer=io.BytesIO(json.dumps(chat).encode()))
    monkeypatch.setattr(sys, "stdin", stdin)

    assert [*prompts_in("-", "prompt").values()] == [(chat, "")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("\n", "there is none"),
        ('{"prompt": "a"}\n{', "line 2: Invalid JSON"),
        (
            '{"text": "a"}',
            "line 1, --prompt-column prompt: generate: prompt must be a str, got N",
        ),
        (
            '{"prompt": " "}',
            "line 1, --prompt-column prompt: answer: prompt must have text",
        ),
        (
            '{"messages": [{"role": "tool"}]}',
            "line 1, .* with a role, and one of the u",
        ),
    ],
)
def test_a_line_without_a_prompt_is_named(content: str, message: str) -> None:
    FILE.write_text(content)
    with pytest.raises(InputError, match=f"^prompts {FILE}: {message}"):
        prompts_in(str(FILE), "prompt")


def test_what_cannot_be_answered_is_refused_before_the_work(
    arguments: list[object],
) -> None:
    for options, message in (
        (["--context", 1], "store and embedder must be given for Passages"),
        (["--chat"], "chat: the model's tokenizer has no chat template"),
        (["--max-new-tokens", 256], "max_new_tokens must be in 1..255, got 256"),
        (["--batch-size", 0], "generate: batch_size must be in 1.."),
        (["--seconds", -1], "adapted: seconds must be above 0, got -1"),
    ):
        result = hullft_ops(*arguments, *options)

        assert result.code == 2
        assert message in result.last
        assert not OUTPUT.exists() or not OUTPUT.read_bytes()
