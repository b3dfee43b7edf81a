"""``hullft-ops adapt`` from the command line to what it prints and writes."""

import io
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from command import hullft_ops, succeeded
from hullft_ops.ttft import (
    Datastore,
    PassageSteps,
    TestTimeFinetuner,
    load_embedder,
    load_model,
    write,
)
from hullft_ops.ttft.language_model import LanguageModel
from hullft_ops.ttft.prefix import Prefix
from hullft_ops.ttft.question import question_of
from hullft_ops.ttft.terminal import printable
from hullft_ops.ttft.training import Training
from hullft_ops.ttft.write import continue_questions

PROMPT = "the cat sat on the red mat and the dog ran to the park"
HOSTILE = "\x1b[2J\x1b]52;c;aGk=\x07\x9b31m\x7f\u202e\u2066"


@pytest.fixture
def arguments(models_of: list[object], store: Path) -> list[object]:
    options = ["--store", store, "--prompt", PROMPT, "--n-select", 6, "--lr", 0.02]
    options += ["--train-on-prompt", 0, "--dtype", None]
    return ["adapt", *models_of, *options, "--max-new-tokens", 8]


def table_of(stdout: str) -> list[tuple[str, float, int]]:
    """Source, weight and steps of each passage."""
    line = r"^(\S+): weight (\d\.\d{3}), (\d+) steps?: "
    rows = re.findall(line, stdout, re.MULTILINE)
    return [(source, float(weight), int(steps)) for source, weight, steps in rows]


def test_a_file_may_have_what_stands_behind_the_cursor(
    arguments: list[object], store: Path, tmp_path: Path
) -> None:
    suffix = tmp_path / "suffix.txt"
    suffix.write_text(" on the mat")
    result = succeeded(*arguments, "--suffix-file", suffix)

    # The toy model has no marks.
    assert "no tokens to fill in with" in result.stderr
    assert "with adaptation:" in result.stdout


def test_it_prints_what_the_finetuner_does(
    arguments: list[object],
    model_directory: Path,
    embedder_directory: Path,
    store: Path,
) -> None:
    printed = succeeded(*arguments).stdout
    model, tokenizer = load_model(str(model_directory))
    finetuner = TestTimeFinetuner(
        model,
        tokenizer,
        Datastore.open(store),
        load_embedder(str(embedder_directory)),
        n_select=6,
        train_on_prompt=0,
        lr=0.02,
        dtype=None,
    )
    question = question_of(finetuner.tokenizer, PROMPT)
    [unadapted] = continue_questions(
        finetuner.language_model, [question], [Prefix()], max_new_tokens=8
    )
    with finetuner.adapted(PROMPT) as adaptation:
        continuation = adaptation.generate(PROMPT, max_new_tokens=8)

    support = adaptation.report(PassageSteps)
    chosen = zip(support.indices, support.weights, support.steps, strict=True)
    # The datastore of a program has no sources.
    expected = [(str(i), round(weight, 3), n) for i, weight, n in chosen if n]

    assert len(expected) < len(support.indices)
    assert table_of(printed) == expected
    assert f"6 steps with {adaptation.passes} gradients" in printed
    assert re.search(r"^seconds: embed \d.*, finetune \d", printed, re.MULTILINE)

    assert unadapted != continuation

    first, last = (printable(text, lines=True) for text in (unadapted, continuation))

    assert printed.startswith(f"without adaptation:\n{first}\n")
    assert printed.endswith(f"\nwith adaptation:\n{last}\n")


def test_steps_on_the_prompt_count(arguments: list[object]) -> None:
    options = ("--n-select", 0, "--train-on-prompt", 3)

    assert "\n3 steps with 2 gradients\n" in succeeded(*arguments, *options).stdout


def test_a_budget_names_the_skipped_steps(arguments: list[object]) -> None:
    printed = succeeded(*arguments, "--seconds", 1e-9).stdout

    assert "0 steps with 0 gradients" in printed
    assert "6 steps beyond the budget skipped" in printed


def test_a_folder_of_texts_takes_the_place_of_a_store(
    arguments: list[object], texts: list[str], tmp_path: Path
) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    for number, text in enumerate(texts[6:]):
        (notes / f"{number}.txt").write_text(text)

    position = arguments.index("--store")
    without = arguments[:position] + arguments[position + 2 :]
    (notes / "photo.jpg").write_bytes(b"\xff\xd8\0")
    options = ("--context", 1, "--exclude", "0.txt")
    result = succeeded(*without, "--corpus", notes, *options)
    rows = table_of(result.stdout)

    assert sum(steps for _, _, steps in rows) == 6
    assert all((notes / source).is_file() for source, _, _ in rows)
    assert re.search(r"^retrieved .* last: \d+\.txt$", result.stdout, re.MULTILINE)
    assert "1 skipped (photo.jpg: not UTF-8 text)" in result.stderr

    [datastore] = (tmp_path / "hullft_datastores").iterdir()

    assert f"datastore: {datastore.relative_to(tmp_path)}\n" in result.stderr
    assert len(Datastore.open(datastore)) == 53


def test_a_folder_is_searched_by_words_without_embedding_it(
    model_directory: Path, texts: list[str], tmp_path: Path
) -> None:
    """The answer does not wait for vectors that it does not use."""
    notes = tmp_path / "notes"
    notes.mkdir()
    for number, text in enumerate(texts):
        (notes / f"{number}.txt").write_text(f"{text} word{number}")

    arguments = ["adapt", "--model", model_directory, "--embedder", "missing"]
    arguments += ["--corpus", notes, "--context", 1, "--max-new-tokens", 2]
    result = succeeded(*arguments, "--prompt", "A text with the word 17: word17")

    assert "loading the embedder" not in result.stderr
    assert "60 passages, no vectors" in result.stderr
    assert "retrieved passages before the prompt, nearest last: 17.txt" in result.stdout

    for options in (("--search", "hybrid"), ("--n-select", 1)):
        refused = hullft_ops(*arguments, "--prompt", "A text", *options)

        assert "embedder missing" in refused.last


def test_long_waits_are_announced(arguments: list[object]) -> None:
    shown = succeeded(*arguments, "--context", 2).stderr

    assert "loading the model" in shown
    assert "adapting to the prompt" in shown


def test_the_prompt_may_be_in_stdin(
    arguments: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = table_of(succeeded(*arguments).stdout)
    for content in (PROMPT.encode(), b"\xff"):
        stdin = io.TextIOWrapper(io.BytesIO(content))
        monkeypatch.setattr("sys.stdin", stdin)
        result = hullft_ops(*arguments, "--prompt", "-")
        if result.code == 0:
            assert table_of(result.stdout) == expected

    assert "prompt -: 'utf-8' codec can't" in result.last


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--store", "nowhere"], "nowhere: no such folder"),
        (["--corpus", "notes"], "give one of --store and --corpus"),
        (["--prompt", " "], "prompt must have text"),
        (["--chat"], "chat: the model's tokenizer has no chat template"),
        (["--seconds", 0], "seconds must be above 0, got 0.0"),
    ],
)
def test_what_cannot_be_ends_with_one_line(
    options: list[object],
    message: str,
    arguments: list[object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Nothing is trained before the refusal.
    monkeypatch.setattr(Training, "take", None)
    result = hullft_ops(*arguments, *options)

    assert result.code == 2
    assert result.last.startswith("hullft-ops adapt: ")
    assert message in result.last
    assert "Traceback" not in result.stderr


def test_a_chat_template_that_fails_ends_with_one_line(
    arguments: list[object], model_directory: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(model_directory, tmp_path / "chat")
    template = "{{ raise_exception('no system') }}"
    (folder / "chat_template.jinja").write_text(template)
    result = hullft_ops(*arguments, "--model", folder, "--chat")

    assert result.code == 2
    assert result.last == (
        "hullft-ops adapt: chat: the model's chat template: TemplateError: no system"
    )


def test_foreign_text_does_not_steer_the_terminal(
    arguments: list[object],
    embedder_directory: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    texts = [f"{HOSTILE} the cat sat on the red mat {n}" for n in range(9)]
    path = tmp_path / "hostile"
    Datastore.build(texts, load_embedder(str(embedder_directory)), path)

    def hostile_rows(
        language_model: LanguageModel, rows: Any, _: object, request: Any
    ) -> list[str]:
        streamer = request.streamer
        streamer.put(torch.tensor([row.ids for row in rows]))
        streamer.put(
            torch.tensor(language_model.tokenizer(f"one\n{HOSTILE}\n")["input_ids"])
        )

        # It is there while the model writes.
        assert sys.stdout.getvalue().endswith("\\u202e\\u2066\n")

        streamer.end()
        return [HOSTILE]

    monkeypatch.setattr(write, "generate_rows", hostile_rows)
    result = succeeded(*arguments, "--store", path)
    refused = hullft_ops(*arguments, "--store", f"{HOSTILE}")
    unknown = hullft_ops(*arguments, f"--{HOSTILE}")

    for text in (result.stdout, refused.stderr, unknown.stderr):
        assert "x1b[2J" in text
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\u2066]", text)

    assert result.stdout.rstrip().endswith("\\u202e\\u2066")
    assert (refused.code, unknown.code) == (2, 2)
