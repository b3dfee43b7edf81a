"""Cutting by tokens."""

from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hullft_ops.ttft.store import build as chunking
from hullft_ops.ttft.store.build import token_chunks


@pytest.fixture
def words() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def test_pieces_overlap_by_tokens(words):
    text = " ".join(f"w{i}" for i in range(10)) + "\n"
    pieces = list(token_chunks(words, 4, 1)(text))
    assert [piece.split() for piece in pieces] == [
        ["w0", "w1", "w2", "w3"],
        ["w3", "w4", "w5", "w6"],
        ["w6", "w7", "w8", "w9"],
    ]
    assert pieces[-1] == "w6 w7 w8 w9\n"


def test_a_tokenizer_that_knows_no_characters_is_refused():
    with pytest.raises(ValueError, match="tokenizer must be a fast one"):
        token_chunks(SimpleNamespace(is_fast=False), 4)


@pytest.mark.parametrize("window", [30, 1000, 1 << 18])
@pytest.mark.parametrize("text", ["one two  three\n\nfour " * 40, " lead", "naïve 漢字 😀😀 " * 30])
@pytest.mark.parametrize("kind", ["words", "bytes"])
def test_pieces_join_up_to_the_text(monkeypatch, words, tokenizers, window, text, kind):
    monkeypatch.setattr(chunking, "_WINDOW", window)
    tokenizer = words if kind == "words" else tokenizers["byte_level"]
    pieces = list(token_chunks(tokenizer, 6)(text))
    assert "".join(pieces) == text
    assert all(pieces)
    # A cut may split a token of several words, or one of a character's bytes, in two.
    assert max(len(tokenizer(p, add_special_tokens=False)["input_ids"]) for p in pieces) <= 9


def test_a_window_changes_nothing_for_words(monkeypatch, words):
    text = " ".join(f"w{i}" for i in range(500))
    whole = list(token_chunks(words, 7, 3)(text))
    monkeypatch.setattr(chunking, "_WINDOW", 200)
    windowed = list(token_chunks(words, 7, 3)(text))
    assert windowed[:20] == whole[:20]
    assert windowed[-1].endswith("w499")


def test_nothing_and_blanks(words):
    assert list(token_chunks(words, 4)("")) == []
    assert list(token_chunks(words, 4)("  \n")) == ["  \n"]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((0, 0), "max_tokens must be at least 1, got 0"),
        ((4, 4), "overlap must be at least 0 and below max_tokens, got 4 of 4"),
        ((4, -1), "got -1 of 4"),
    ],
)
def test_bad_sizes_are_refused(words, sizes, message):
    with pytest.raises(ValueError, match=message):
        token_chunks(words, *sizes)
