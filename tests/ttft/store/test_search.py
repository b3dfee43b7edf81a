"""The index that a size gets, its measured recall, and that it is right about what it returns."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from hullft_ops.ttft import Datastore
from hullft_ops.ttft.store.search import IndexThresholds, exact_search

COUNT, DIM = 4000, 16
IVF = IndexThresholds(flat=1000)
IVFPQ = IndexThresholds(flat=1000, ivf=2000)


class GivenVectors:
    """Unit vectors near a few centres, chosen by the number that is the text."""

    name, dim = "given", DIM

    def __init__(self) -> None:
        random = np.random.default_rng(0)
        centres = random.normal(size=(40, DIM))
        noise = random.normal(size=(COUNT + 50, DIM))
        vectors = centres[random.integers(40, size=COUNT + 50)] + 0.6 * noise
        self.vectors = (
            vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        ).astype("f4")

    def encode(self, texts):
        return self.vectors[[int(text) for text in texts]]


@pytest.fixture(scope="module")
def given() -> GivenVectors:
    return GivenVectors()


@pytest.fixture(scope="module")
def stores(
    given: GivenVectors, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Datastore]:
    path = tmp_path_factory.mktemp("stores")
    kinds = {"flat": IndexThresholds(), "ivf": IVF, "ivfpq": IVFPQ}
    texts = list(map(str, range(COUNT)))
    return {
        kind: Datastore.build(
            texts, given, path / kind, progress=False, thresholds=thresholds
        )
        for kind, thresholds in kinds.items()
    }


@pytest.mark.parametrize(
    ("count", "kind"),
    [(1, "flat"), (2, "flat"), (3, "flat"), (4, "ivf"), (255, "ivf"), (256, "ivfpq")],
)
def test_too_few_texts_for_an_index_get_a_simpler_one(given, tmp_path, count, kind):
    texts, thresholds = list(map(str, range(count))), IndexThresholds(flat=0, ivf=0)
    store = Datastore.build(
        texts, given, tmp_path / "s", progress=False, thresholds=thresholds
    )
    assert store.manifest.index.kind == kind
    assert store.search(given.vectors[:1], 1)[1].tolist() == [[0]]


@pytest.mark.parametrize("queries", [1, 40])
def test_of_equal_scores_at_the_end_the_lower_rows_are_found(queries):
    random = np.random.default_rng(0)
    for count, dim, k in ((3, 1, 2), (200, 2, 7), (400, 3, 300), (60, 2, 60)):
        matrix = random.integers(-2, 3, (count, dim)).astype("f4")
        asked = random.integers(-2, 3, (queries, dim)).astype("f4")
        _, ids = exact_search(matrix, asked, k)
        # Small integers: NumPy's products are the same to the bit.
        assert (
            ids.tolist()
            == np.argsort(-(asked @ matrix.T), 1, kind="stable")[:, :k].tolist()
        )


def test_the_size_chooses(stores):
    for kind, store in stores.items():
        assert store.manifest.index.kind == kind
    assert str(stores["flat"].manifest.index) == "flat, exact"


@pytest.mark.parametrize("kind", ["ivf", "ivfpq"])
def test_the_recall_that_is_said_is_about_what_new_queries_get(
    monkeypatch, stores, given, kind
):
    monkeypatch.setattr("hullft_ops.ttft.store.datastore._EXACT_ROWS", 0)
    index = stores[kind].manifest.index
    assert index.recall >= 0.95
    assert 0 < index.probes <= index.lists
    assert f"recall@200 {index.recall:.3f} on 128 queries" in str(index)
    queries = given.vectors[COUNT:]
    _, found = stores[kind].search(queries, index.recall_k)
    _, exact = stores["flat"].search(queries, index.recall_k)
    hits = [
        np.isin(a, b).mean() for a, b in zip(exact.numpy(), found.numpy(), strict=True)
    ]
    assert np.mean(hits) > 0.9


@pytest.mark.parametrize("kind", ["ivf", "ivfpq"])
@pytest.mark.parametrize("k", [1, 7, COUNT])
def test_scores_are_exact_and_in_order(monkeypatch, stores, given, kind, k):
    monkeypatch.setattr("hullft_ops.ttft.store.datastore._EXACT_ROWS", 0)
    queries = given.vectors[COUNT : COUNT + 5]
    scores, ids = stores[kind].search(queries, k)
    assert all(len(set(row)) == k for row in ids.tolist())
    products = queries @ given.vectors[:COUNT].T
    np.testing.assert_allclose(
        scores, np.take_along_axis(products, ids.numpy(), axis=1), rtol=1e-4, atol=1e-6
    )
    assert (scores[:, :-1] >= scores[:, 1:]).all()


@pytest.mark.parametrize("kind", ["ivf", "ivfpq"])
def test_a_filter_holds_in_lists(monkeypatch, stores, given, kind):
    monkeypatch.setattr("hullft_ops.ttft.store.datastore._EXACT_ROWS", 0)
    store = stores[kind]
    positions = torch.arange(0, COUNT, 3)
    part = Datastore(
        store.manifest, store.rows, store.embeddings, store.lists, positions
    )
    _, ids = part.search(given.vectors[COUNT:], 50)
    assert (ids % 3 == 0).all()
    _, exact = exact_search(
        given.vectors[:COUNT], given.vectors[COUNT:], 50, positions.numpy()
    )
    assert (
        np.mean([np.isin(a, b).mean() for a, b in zip(exact, ids.numpy(), strict=True)])
        > 0.9
    )


@pytest.mark.parametrize("rows", [np.arange(3, 999, 2), np.array([5])])
def test_blocks_change_nothing(monkeypatch, given, rows):
    monkeypatch.setattr("hullft_ops.ttft.store.search._BLOCK_ROWS", 64)
    k = min(9, len(rows))
    scores, ids = exact_search(given.vectors, given.vectors[:4], k, rows)
    wanted, places = exact_search(given.vectors[rows], given.vectors[:4], k)
    np.testing.assert_array_equal(ids, rows[places])
    np.testing.assert_allclose(scores, wanted, rtol=1e-5)


def test_equal_scores_come_in_order_of_position_across_blocks(monkeypatch):
    monkeypatch.setattr("hullft_ops.ttft.store.search._BLOCK_ROWS", 4)
    same = np.tile(np.eye(1, 8, dtype=np.float32), (30, 1))
    _, ids = exact_search(same, same[:1], 6, np.arange(1, 30, 2))
    assert ids[0, 0] == 1


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_index_is_refused(given, tmp_path, damage):
    texts = list(map(str, range(1200)))
    Datastore.build(texts, given, tmp_path / "s", progress=False, thresholds=IVF)
    (file,) = (tmp_path / "s").glob("data-*/*.faiss")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content[:-1] if damage == "cut" else content)
    with pytest.raises(ValueError, match=r"faiss is missing or corrupt"):
        Datastore.open(tmp_path / "s")


class ThreeVectors(GivenVectors):
    """Most lists stay empty, and FAISS then writes the others' numbers and sizes."""

    def encode(self, texts):
        return self.vectors[[int(text) % 3 for text in texts]]


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> tuple[Datastore, bytes]:
    path = tmp_path_factory.mktemp("sparse") / "store"
    texts = list(map(str, range(1200)))
    store = Datastore.build(texts, ThreeVectors(), path, progress=False, thresholds=IVF)
    (file,) = path.glob("data-*/*.faiss")
    return store, file.read_bytes()


def test_lists_that_are_mostly_empty_are_searched(monkeypatch, sparse):
    monkeypatch.setattr("hullft_ops.ttft.store.datastore._EXACT_ROWS", 0)
    store, content = sparse
    assert b"sprs" in content
    _, ids = store.search(ThreeVectors().vectors[1:2], 400)
    assert sorted(ids[0].tolist()) == list(range(1, 1200, 3))


def test_an_index_outside_of_the_datastore_is_refused(given, tmp_path):
    texts = list(map(str, range(1200)))
    Datastore.build(texts, given, tmp_path / "s", progress=False, thresholds=IVF)
    manifest: Path = tmp_path / "s" / "manifest.json"
    values = json.loads(manifest.read_text())
    values["index"]["file"]["file"] = "../index-00.faiss"
    manifest.write_text(json.dumps(values))
    with pytest.raises(ValueError, match="index.file must be named like"):
        Datastore.open(tmp_path / "s")
