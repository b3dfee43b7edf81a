"""The tool that says whether two datastores hold the same."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import compare_datastores
from hullft_ops.ttft import Datastore, Source, index_corpus

RECORDS = [
    {"text": f"passage {i} of a corpus", "domain": "ab"[i % 2]} for i in range(40)
]
SAME = "the same"


@pytest.fixture
def built(embedder, tmp_path) -> Callable[..., Path]:
    """A datastore of records, always from a file of the same name."""

    def build(name: str, records: list[dict[str, str]]) -> Path:
        corpus = tmp_path / "corpus.jsonl"
        corpus.write_text("".join(json.dumps(record) + "\n" for record in records))
        source = Source(corpus, metadata=("domain",))
        index_corpus(source, tmp_path / name, embedder)
        return tmp_path / name

    return build


def differing(store: Path, other: Path) -> set[str]:
    found = compare_datastores.compare(Datastore.open(store), Datastore.open(other))
    return {what.split(",")[0] for what, difference in found.items() if difference}


def test_a_second_build_is_the_same(built, monkeypatch, capsys):
    stores = built("one", RECORDS), built("two", RECORDS)
    monkeypatch.setattr(sys, "argv", ["compare", *map(str, stores)])
    with pytest.raises(SystemExit) as ended:
        compare_datastores.main()
    assert ended.value.code == 0
    assert capsys.readouterr().out.count(SAME) == 5


def test_each_difference_is_named(built, monkeypatch):
    whole = built("whole", RECORDS)
    assert differing(whole, built("fewer", RECORDS[:-1])) == {
        *("count", "texts and metadata", "embeddings", "manifest")
    }
    swapped = [RECORDS[1], RECORDS[0], *RECORDS[2:]]
    assert differing(whole, built("order", swapped)) == {
        *("texts and metadata", "embeddings", "manifest")
    }
    renamed = [{**RECORDS[0], "domain": "c"}, *RECORDS[1:]]
    assert differing(whole, built("metadata", renamed)) == {
        "texts and metadata",
        "manifest",
    }
    monkeypatch.setattr(
        sys, "argv", ["compare", str(whole), str(whole.parent / "order")]
    )
    with pytest.raises(SystemExit) as ended:
        compare_datastores.main()
    assert ended.value.code == 1


def test_the_last_bit_of_a_vector_counts(built):
    store, other = (Datastore.open(built(name, RECORDS)) for name in ("one", "two"))
    vector = other.embeddings[7].numpy()
    vector[0] = np.nextafter(vector[0], np.float32(2))
    found = compare_datastores.compare(store, other)
    assert found.pop("embeddings, bit for bit").startswith("1 of 40 vectors, by ")
    assert not any(found.values())
