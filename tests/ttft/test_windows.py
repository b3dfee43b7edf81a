"""Search by windows of lines, against a slow one that follows its definition."""

import math
from random import Random
from types import SimpleNamespace

import pytest
import torch

from hullft_ops.ttft import TestTimeFinetuner, load_model
from hullft_ops.ttft.question import question_of
from hullft_ops.ttft.search import Windows, with_separator
from hullft_ops.ttft.store.base import MemoryStore
from hullft_ops.ttft.store.datastore import Datastore
from hullft_ops.ttft.windows import LineBlocks, line_blocks, terms_in

NAMES = ("loadConfig", "save_table", "Reader", "rows", "index", "total", "name")


def document(seed, lines):
    """Lines of code."""
    names = iter(Random(seed).choices(NAMES, k=3 * lines))
    return "".join(
        f"{next(names)} = {next(names)}({next(names)}_{line})\n"
        for line in range(lines)
    )


DOCUMENTS = [
    ("src/reader.py", document(1, 47)),
    ("src/core/table.py", document(2, 30)),
    ("src/empty.py", ""),
    ("tests/test_table.py", document(3, 61) + "no newline"),
    (None, document(4, 9)),
]


def reference(documents, text):
    """The score of each block: its window has the block and the one before."""
    windows = []
    for _, content in documents:
        lines = content.splitlines()
        for begin in range(0, len(lines), 10):
            window = lines[max(0, begin - 10) : begin + 10]
            windows.append([term for line in window for term in terms_in(line)])
    mean = sum(map(len, windows)) / len(windows)
    weights = {}
    for distance, line in enumerate(text.splitlines()[::-1][:40]):
        for term in terms_in(line):
            weights.setdefault(term, 0.5 ** (distance / 5))
    scores = []
    for window in windows:
        score = 0.0
        for term, weight in weights.items():
            holders = sum(term in other for other in windows)
            rarity = math.log(1 + (len(windows) - holders + 0.5) / (holders + 0.5))
            occurrences = window.count(term)
            length = 0.25 + 0.75 * len(window) / mean
            score += weight * rarity * occurrences / (occurrences + 1.2 * length)
        scores.append(score)
    return torch.tensor(scores)


def blocks_of(blocks, source):
    return {position for position, each in enumerate(blocks.sources) if each == source}


@pytest.mark.parametrize("seed", [1, 5, 6])
def test_windows_are_ranked_by_weighted_bm25(seed):
    text = document(seed, 55)
    blocks = LineBlocks(DOCUMENTS)
    scores = reference(DOCUMENTS, text)
    positions = blocks.nearest(text, len(blocks))

    assert len(positions) == len(blocks) == len(scores)
    ranked = scores[positions]
    assert (ranked[:-1] >= ranked[1:] - 1e-5).all()
    assert blocks.nearest(text, 3).tolist() == positions[:3].tolist()


def test_what_goes_on_like_the_text_is_found():
    lines = document(3, 61).splitlines(keepends=True)
    blocks = LineBlocks(DOCUMENTS)
    nearest = int(blocks.nearest("".join(lines[10:30]), 1)[0])

    # Lines 10 to 30 are a window; it is found where its second block is.
    assert blocks.texts[nearest] == "".join(lines[20:30])
    assert blocks.texts[blocks.following(nearest)] == "".join(lines[30:40])


def test_blocks_are_documents_again():
    blocks = LineBlocks(DOCUMENTS)
    texts, position = [""], 0
    while position < len(blocks):
        texts[-1] += blocks.texts[position]
        if blocks.following(position) is None:
            texts.append("")
        position += 1

    assert texts[:-1] == [text for _, text in DOCUMENTS if text]


def store_without_documents(texts, sources):
    """A store of one's own."""

    def following(position):
        pair = sources[position : position + 2]
        return position + 1 if pair == 2 * pair[:1] else None

    return SimpleNamespace(
        texts=texts, sources=sources, identity="", following=following
    )


def test_passages_are_joined_to_documents(tmp_path):
    passages = [
        (source, text[begin : begin + 100])
        for source, text in DOCUMENTS[:4]
        for begin in range(0, len(text), 100)
    ]
    sources, texts = zip(*passages, strict=True)
    store = Datastore.build(texts, None, tmp_path / "store", sources=sources)
    blocks = line_blocks(store)

    for each in (blocks, line_blocks(store_without_documents(texts, sources))):
        assert each.texts == LineBlocks(DOCUMENTS[:4]).texts
        assert each.sources == LineBlocks(DOCUMENTS[:4]).sources


def test_a_store_that_is_updated_has_other_blocks(tmp_path):
    store = Datastore.build(["a = 1\n"], None, tmp_path / "store", sources=["a.py"])
    search = Windows(store, None)
    blocks = search.store
    store.update({"b.py": "b = 2\n"})

    assert search.store.sources == ["a.py", "b.py"]
    assert search.store is search.store is not blocks


def test_nothing_is_like_other_words():
    assert LineBlocks(DOCUMENTS).nearest("zzz ?!", 3).tolist() == []
    assert LineBlocks(DOCUMENTS).nearest("", 3).tolist() == []


def test_an_open_file_is_found_above_its_text_alone():
    source, content = DOCUMENTS[3]
    lines = content.splitlines(keepends=True)
    blocks = LineBlocks(DOCUMENTS)
    of_file = blocks_of(blocks, source)
    first = min(of_file)

    for begin, above in ((0, set()), (19, set()), (20, {0}), (45, {0, 1, 2})):
        text = "".join(lines[begin:])
        found = set(blocks.nearest(text, len(blocks), source).tolist())
        assert found & of_file == {first + block for block in above}
    # A file that was changed since is not found at all.
    changed = "changed = 1\n" + "".join(lines[45:])
    assert not of_file & set(blocks.nearest(changed, len(blocks), source).tolist())


def test_files_of_the_same_folder_count_more():
    content = document(2, 20)
    sources = ("lib/a.py", "src/core/b.py", "src/c.py")
    blocks = LineBlocks([(source, content) for source in sources])
    positions = blocks.nearest(content, 6, "src/core/open.py").tolist()
    nearest = dict.fromkeys(blocks.sources[position] for position in positions)

    assert [*nearest] == ["src/core/b.py", "src/c.py", "lib/a.py"]


@pytest.mark.parametrize(
    ("source", "heading"),
    [("a/b.py", "# a/b.py\n"), ("b.CPP", "// b.CPP\n"), (None, "")],
)
def test_what_is_read_names_its_file(source, heading):
    blocks = LineBlocks([(source, "x = 1\ny = 2\n")])

    assert with_separator(blocks, [0]) == heading + "x = 1\ny = 2\n\n\n"


def test_a_finetuner_reads_windows():
    store = MemoryStore([text for _, text in DOCUMENTS if text])
    options = {"search": "windows", "context": 1, "train_on_prompt": 0}
    finetuner = TestTimeFinetuner(*load_model(None), store, **options)
    prompt = DOCUMENTS[0][1][:200]

    assert isinstance(finetuner.search, Windows)
    with finetuner.adapted(prompt) as adaptation:
        blocks = adaptation.neighbours.store
        passage = adaptation.passages[-1]
        nearest = adaptation.neighbours.positions[0]
        assert passage.positions[0] == nearest
        assert passage.text == with_separator(blocks, passage.positions)
        assert adaptation.generate(max_new_tokens=2)
    # They can be used again, like the store's own.
    with finetuner.adapted(adaptation.neighbours) as again:
        assert again.passages == adaptation.passages


def test_a_question_keeps_its_source(tokenizer):
    question = question_of(tokenizer, "x = 1\n", source="a.py")

    assert question.source == question.without_end(1).source == "a.py"
