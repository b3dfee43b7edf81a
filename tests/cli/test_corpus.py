"""Passages, what is held out, and what is left out and said."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from hullft_ops.ttft.errors import InputError
from hullft_ops.ttft.evaluation import corpus as corpus_module
from hullft_ops.ttft.evaluation.corpus import (
    FAMILIES,
    HELD_OUT_ONE_IN,
    PASSAGE_BUDGET,
    PASSAGE_CHARS,
    installed_corpus,
    jsonl_corpus,
    normalised,
    split_passages,
)

CODE = '''"""A module."""

import os


@decorated
def first(x):
    return x


class Second:
    """Doc."""

    def third(self):
        return os.sep
'''


def write_records(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def numbered(count: int) -> list[str]:
    return [
        f"record number {i} says something of its own, {i * i} times over"
        for i in range(count)
    ]


@pytest.mark.parametrize("max_chars", [4, 7, 40, 100, 1000])
@pytest.mark.parametrize(
    "text", [CODE, "word " * 300, "x" * 333, "a\n\n\n\nb\n" * 50, "é漢字 " * 99]
)
def test_passages_join_up_and_keep_their_sizes(text: str, max_chars: int) -> None:
    passages = list(split_passages(text, max_chars))
    assert "".join(passages) == text
    assert max(map(len, passages)) <= max_chars
    if len(passages) > 1:
        assert min(map(len, passages)) >= max_chars // 4


def test_a_passage_ends_before_a_definition_and_its_decorator() -> None:
    passages = list(split_passages(CODE, 58))
    assert passages[1].startswith("@decorated\ndef first")
    assert passages[2].startswith("class Second")


def test_a_definition_outranks_a_blank_line_and_a_blank_line_a_line() -> None:
    lines, function, paragraph = "a\n" * 8, "def f():\nb\n\n", "c\n" * 12
    assert next(split_passages(lines + function + paragraph, 32)) == lines
    assert next(split_passages(function + paragraph, 16)) == function


def test_prose_is_cut_between_words() -> None:
    passages = list(split_passages("alpha beta gamma delta " * 20, 50))
    assert all(passage.endswith(" ") for passage in passages)


def test_max_chars_too_small_is_refused() -> None:
    with pytest.raises(ValueError, match="max_chars must be at least 4, got 3"):
        list(split_passages("text", 3))


def test_normalised_ignores_layout_alone() -> None:
    assert normalised("  a = 1\n\n\tb\n") == normalised("a = 1\nb")
    assert normalised("a = 1") != normalised("a = 2")


def test_documents_are_held_out_whole(tmp_path: Path) -> None:
    long = ["\n".join(f"line {i} of record {r}" for i in range(200)) for r in range(16)]
    corpus = jsonl_corpus(write_records(tmp_path / "c.jsonl", long))
    kept = {passage.source for passage in corpus.store}
    held = {prompt.domain for prompt in corpus.held_out}
    assert len(corpus.store) > len(kept) > 1
    assert not kept & held
    assert (len(held), corpus.held_out_documents) == (
        16 // HELD_OUT_ONE_IN,
        16 // HELD_OUT_ONE_IN,
    )
    assert len(kept) + len(held) == corpus.documents == 16


def test_a_split_is_the_same_every_time(tmp_path: Path) -> None:
    file = write_records(tmp_path / "c.jsonl", numbered(40))
    assert jsonl_corpus(file) == jsonl_corpus(file)


def test_what_the_store_holds_already_is_no_prompt(tmp_path: Path) -> None:
    texts = numbered(40)
    held = {
        p.text
        for p in jsonl_corpus(write_records(tmp_path / "a.jsonl", texts)).held_out
    }
    leak = sorted(held)[0]
    # Records keep their line, and so whether they are held out; only one text changes.
    kept = next(i for i, text in enumerate(texts) if text not in held)
    texts[kept] = f"\n    {leak}  \n"
    corpus = jsonl_corpus(write_records(tmp_path / "b.jsonl", texts))
    assert corpus.leaked == 1
    assert {passage.text for passage in corpus.held_out} == held - {leak}


def test_the_store_holds_a_text_once(tmp_path: Path) -> None:
    licence = "the same licence, word for word, in every one of the files"
    corpus = jsonl_corpus(
        write_records(tmp_path / "c.jsonl", [*numbered(30), *[licence] * 10])
    )
    counts = Counter(normalised(passage.text) for passage in corpus.store)
    assert counts[licence] == 1
    assert set(counts.values()) == {1}
    assert (
        corpus.repeated
        == corpus.documents - corpus.held_out_documents - len(corpus.store)
        > 0
    )


def test_a_short_text_is_no_prompt(tmp_path: Path) -> None:
    texts = [f"short {i}" for i in range(16)]
    corpus = jsonl_corpus(write_records(tmp_path / "c.jsonl", texts))
    assert (corpus.held_out_documents, corpus.held_out) == (2, [])
    assert len(corpus.store) == 14


def test_malformed_lines_are_named_and_blank_ones_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "c.jsonl"
    lines = [
        b'{"text": "a usable record of some length, long enough to be a prompt"}',
        b"{oops",
        b'["text"]',
        b'{"text": 3}',
        b'{"text": " "}',
        b"\xff\xfe",
        b"",
        b'{"text": "\\ud800"}',
        b"[" * 100_000,
    ]
    file.write_bytes(b"\n".join(lines) + b"\n")
    corpus = jsonl_corpus(file)
    assert corpus.documents == 1
    assert corpus.malformed == [
        "line 2: not JSON",
        "line 3: not an object",
        'line 4: no string "text"',
        'line 5: blank "text"',
        "line 6: not UTF-8",
        'line 8: "text" with half a surrogate pair',
        "line 9: not JSON",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "empty"),
        ("\n\n", "empty"),
        ("{}\n[]\n", r"2 lines, none usable \(line 1: no string"),
    ],
)
def test_a_file_without_usable_text_is_refused(
    tmp_path: Path, content: str, message: str
) -> None:
    file = tmp_path / "c.jsonl"
    file.write_text(content)
    with pytest.raises(InputError, match=f"c.jsonl: {message}"):
        jsonl_corpus(file)


def test_fingerprint_tells_texts_order_and_embedder_apart(tmp_path: Path) -> None:
    texts = numbered(10)
    corpus = jsonl_corpus(write_records(tmp_path / "a.jsonl", texts))
    other = jsonl_corpus(
        write_records(tmp_path / "b.jsonl", [*texts[:-1], texts[-1] + "!"])
    )
    reordered = replace(corpus, store=corpus.store[::-1])
    prints = [
        corpus.fingerprint("one"),
        corpus.fingerprint("two"),
        other.fingerprint("one"),
        reordered.fingerprint("one"),
    ]
    assert len(set(prints)) == 4
    assert corpus.fingerprint("one") == prints[0]


def test_the_installed_corpus_has_its_size_and_every_family() -> None:
    corpus = installed_corpus()
    assert 0.6 * PASSAGE_BUDGET < len(corpus.store) <= PASSAGE_BUDGET
    for package, pattern in FAMILIES:
        folder = f"{package}/{pattern.split('*')[0]}"
        assert any(passage.source.startswith(folder) for passage in corpus.store), (
            folder
        )
        assert any(prompt.domain.startswith(folder) for prompt in corpus.held_out), (
            folder
        )
    assert not {p.source for p in corpus.store} & {p.domain for p in corpus.held_out}
    assert not {normalised(p.text) for p in corpus.store} & {
        normalised(p.text) for p in corpus.held_out
    }
    assert max(len(passage.text) for passage in corpus.store) <= PASSAGE_CHARS


def test_a_family_that_is_not_installed_is_passed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    families = (("torch", "optim/*.py"), ("no_such_package", "*.py"))
    monkeypatch.setattr(corpus_module, "FAMILIES", families)
    assert {p.source.split("/")[0] for p in installed_corpus().store} == {"torch"}
    monkeypatch.setattr(corpus_module, "FAMILIES", families[1:])
    with pytest.raises(InputError, match="no sources of no_such_package found"):
        installed_corpus()
