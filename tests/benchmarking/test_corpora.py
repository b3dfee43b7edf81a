"""The corpora of the studies: documents, and prompts with what follows them."""

from pathlib import Path

import pytest
from benchmarks.studies import corpora


def lines(first: int, count: int) -> str:
    """Lines of 100 characters, each with words of its own."""
    return "".join(
        f"{f'word{n} of line {n}, ' * 10}"[:99] + "\n"
        for n in range(first, first + count)
    )


def test_prompts_are_long_and_not_in_the_documents(tmp_path: Path) -> None:
    for number in range(8):
        (tmp_path / f"{number}.txt").write_text(lines(100 * number, 16))
    (tmp_path / "notes.md").write_text(lines(900, 16))
    documents, held_out = corpora.split("notes", tmp_path, ["*.txt"], 99, 99)
    prompts = corpora.choose_prompts(documents, held_out, most_shared=0.2)

    assert (len(documents), len(held_out)) == (6, 2)
    assert len(prompts) == 2
    for prompt in prompts:
        whole = (tmp_path / prompt["source"]).read_text()
        assert prompt["text"] + prompt["continuation"] == whole

    repeated = [
        [{**d, "text": d["text"][:800]}, {**d, "text": "x" * 700}] for d in documents
    ]
    assert corpora.choose_prompts(documents, repeated, most_shared=0.2) == []
    assert len(corpora.choose_prompts(documents, repeated, most_shared=1)) == 6
    short = [[{**documents[0], "text": "short"}] * 2]
    assert corpora.choose_prompts(documents, short, most_shared=1) == []
    with pytest.raises(ValueError, match="no documents in"):
        corpora.split("notes", tmp_path / "none", ["*"], 99, 99)
