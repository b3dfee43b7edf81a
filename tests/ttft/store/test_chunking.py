"""Cutting by tokens."""

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
    pieces = list(token_chunks(text, words, 4, 1))
    assert [piece.split() for piece in pieces] == [
        ["w0", "w1", "w2", "w3"],
        ["w3", "w4", "w5", "w6"],
        ["w6", "w7", "w8", "w9"],
    ]
    assert pieces[-1] == "w6 w7 w8 w9\n"


@pytest.mark.parametrize("window", [30, 1000, 1 << 18])
@pytest.mark.parametrize(
    "text", ["one two  three\n\nfour " * 40, " lead", "naïve 漢字 😀😀 " * 30]
)
@pytest.mark.parametrize("kind", ["words", "bytes"])
def test_pieces_join_up_to_the_text(monkeypatch, words, tokenizers, window, text, kind):
    monkeypatch.setattr(chunking, "_WINDOW", window)
    tokenizer = words if kind == "words" else tokenizers["byte_level"]
    pieces = list(token_chunks(text, tokenizer, 6))
    assert "".join(pieces) == text
    assert all(pieces)
    # A cut may split a token of several words, or one of a character's bytes, in two.
    assert (
        max(len(tokenizer(p, add_special_tokens=False)["input_ids"]) for p in pieces)
        <= 9
    )


def test_a_window_changes_nothing_for_words(monkeypatch, words):
    text = " ".join(f"w{i}" for i in range(500))
    whole = list(token_chunks(text, words, 7, 3))
    monkeypatch.setattr(chunking, "_WINDOW", 200)
    windowed = list(token_chunks(text, words, 7, 3))
    assert windowed[:20] == whole[:20]
    assert windowed[-1].endswith("w499")


def test_nothing_and_blanks(words):
    assert list(token_chunks("", words, 4)) == []
    assert list(token_chunks("  \n", words, 4)) == ["  \n"]
