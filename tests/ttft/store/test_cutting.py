"""Passages are verbatim pieces of a text."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hullft_ops.ttft.store import cutting
from hullft_ops.ttft.store.cutting import split_passages, token_chunks


def of_words():
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def of_bytes():
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate(letters)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_pieces_are_of_so_many_tokens():
    text = " ".join(f"w{i}" for i in range(10)) + "\n"
    pieces = list(token_chunks(text, of_words(), 4))

    assert [len(piece.split()) for piece in pieces] == [4, 4, 2]


@pytest.mark.parametrize("window", [30, 1000, 1 << 18])
@pytest.mark.parametrize(
    "text",
    ["one two  three\n\nfour " * 40, " lead", "naïve 漢字 😀😀 " * 30, "", " \n"],
)
@pytest.mark.parametrize("make", [of_words, of_bytes])
def test_pieces_join_up_to_the_text(monkeypatch, window, text, make):
    monkeypatch.setattr(cutting, "_WINDOW", window)
    tokenizer = make()
    pieces = list(token_chunks(text, tokenizer, 6))

    assert "".join(pieces) == text
    assert all(pieces)

    # A cut may split a token of several words, or one of a character's bytes, in two.
    for piece in pieces:
        assert len(tokenizer(piece, add_special_tokens=False)["input_ids"]) <= 9


CODE = """import os


class Store:
    def add(self, text):
        self.texts.append(text)

    def get(self, i):
        return self.texts[i]


def main():
    print(os.name)
"""


def test_code_is_cut_at_definitions():
    pieces = list(split_passages(CODE, 90))

    assert "".join(pieces) == CODE
    assert [piece.splitlines()[0] for piece in pieces] == [
        "import os",
        "    def get(self, i):",
    ]
    assert pieces[1].endswith("main():\n    print(os.name)\n")


@pytest.mark.parametrize("text", ["", "short", "x" * 1000, "a b\n\nc " * 99, CODE])
@pytest.mark.parametrize("most", [4, 33, 100])
def test_passages_join_up_to_the_text(text, most):
    pieces = list(split_passages(text, most))

    assert "".join(pieces) == text
    assert all(0 < len(piece) <= most for piece in pieces)

    if len(pieces) > 1:
        assert min(map(len, pieces)) >= most // 4
