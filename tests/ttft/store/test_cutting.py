"""Passages are verbatim pieces of a text."""

import pytest

from hullft_ops.ttft.store.cutting import split_passages

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
