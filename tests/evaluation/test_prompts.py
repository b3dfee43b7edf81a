"""Held-out prompts: which texts are held out, cut and chosen, and that none is in the store."""

import hashlib
import json
import random
from pathlib import Path

import pytest
import torch

from hullft_ops.evaluation.prompts import (
    TORCH_SOURCES,
    HeldOut,
    choose_prompts,
    hold_out,
    normalised,
    passages_of,
    prompts_of,
    read_prompts,
)
from hullft_ops.ttft.store.corpus import Corpus, IndexConfig
from hullft_ops.ttft.validation import InputError

WORDS = ["cat", "dog", "mat", "park", "ran", "sat", "the", "on", "to", "red", "blue"]
WORDS += ["tree"]


def documents() -> dict[str, str]:
    """40 files that look like Python."""
    draw = random.Random(0)
    files = {}
    for number in range(40):
        lines = []
        for _ in range(draw.randint(3, 60)):
            indentation = " " * draw.choice([0, 0, 4])
            words = ["def f(x):", "class A:", ""]
            words.append(" ".join(draw.choices(WORDS, k=draw.randint(1, 12))))
            lines.append(indentation + draw.choice(words))

        files[f"file{number}.py"] = "\n".join(lines)

    return files


def written(folder: Path, *records: object) -> Path:
    """A file with a line for each record; a str is a line as it is."""
    file = folder / "texts.jsonl"
    with file.open("w") as lines:
        for record in records:
            line = record if isinstance(record, str) else json.dumps(record)
            lines.write(f"{line}\n")

    return file


def test_whole_documents_are_held_out() -> None:
    passages, prompts = hold_out(documents())
    held_out = {prompt.domain for prompt in prompts}

    # One in eight.
    assert len(held_out) == 5

    stored = {normalised(passage) for passage, _ in passages}
    for name, text in documents().items():
        pieces = {normalised(piece) for piece in passages_of(text)}
        if name in held_out:
            assert not stored & pieces
        else:
            assert pieces <= stored


def test_a_passage_of_the_store_is_no_prompt_whatever_its_layout() -> None:
    text = "\n".join(f"the {word} sat on the mat and ran to the park" for word in WORDS)
    indented = "\n\n".join(f"    {line}  " for line in text.splitlines())
    twins = {f"twin{n}": text if n % 2 else indented for n in range(16)}
    _, prompts = hold_out(twins)

    assert prompts == []


def test_each_prompt_has_what_follows_it_in_its_document() -> None:
    texts = documents()
    passages, prompts = hold_out(texts)
    for prompt in prompts:
        assert f"{prompt.text}{prompt.continuation}" in texts[prompt.domain]
        assert len(normalised(str(prompt.continuation))) >= 50

    for passage, source in passages:
        assert passage in texts[source]


def test_a_short_document_is_cut_into_a_prompt_and_its_continuation() -> None:
    text = "\n".join(f"the {word} sat on the mat and ran" for word in WORDS)
    [prompt] = prompts_of("short", text)

    assert len(text) < 800
    assert text == f"{prompt.text}{prompt.continuation}"

    for text in ("", "ab"):
        assert list(prompts_of("tiny", text)) == []


def test_sources_of_torch_give_enough_passages() -> None:
    folder = Path(torch.__file__).parent
    files = Corpus(folder, IndexConfig(include=TORCH_SOURCES)).records([])
    passages, prompts = hold_out({file["source"]: file["text"] for file in files})

    assert 1000 < len(passages) <= 2500
    assert len(prompts) > 100
    assert max(len(passage) for passage, _ in passages) <= 800
    assert min(len(normalised(prompt.text)) for prompt in prompts) >= 50


def test_prompts_take_turns_over_domains_and_follow_the_seed() -> None:
    prompts = [HeldOut(f"text {i}", f"file {i % 4}") for i in range(20)]
    chosen = choose_prompts(prompts, 8, seed=0)
    for turn in (chosen[:4], chosen[4:]):
        assert {prompt.domain for prompt in turn} == {f"file {i}" for i in range(4)}

    assert chosen[:3] == choose_prompts(prompts[::-1], 3, seed=0)
    assert chosen != choose_prompts(prompts, 8, seed=1)
    assert len(choose_prompts(prompts, None, seed=0)) == 20

    with pytest.raises(InputError, match="limit is 1, there are 0 "):
        choose_prompts([], None, seed=0)


def test_prompts_come_once_each_with_their_domain(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        {"text": "a b", "domain": "x", "continuation": "c"},
        {"text": "c d"},
        {"text": "a b"},
        "",
        {"text": "e\u2028f", "n": 1},
    )
    prompts = read_prompts(file)

    assert prompts == [HeldOut("a b", "x", "c"), HeldOut("c d"), HeldOut("e\u2028f")]
    assert prompts[1].id == hashlib.sha256(b"c d").hexdigest()[:16]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json", "Invalid JSON"),
        ({"body": "no text"}, "text: Field required"),
        ({"text": " \n"}, "text: String should match pattern"),
    ],
)
def test_a_wrong_line_is_named(line: object, message: str, tmp_path: Path) -> None:
    file = written(tmp_path, {"text": "a b"}, line)

    with pytest.raises(InputError) as error:
        read_prompts(file)

    assert str(error.value).startswith(f"prompts {file}: line 2: {message}")
