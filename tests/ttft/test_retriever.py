"""Retriever answers as activeft.sift.Retriever does."""

import inspect

import faiss
import numpy as np
import pytest
import torch
from activeft import sift as activeft

import hullft_ops
from hullft_ops import reference
from hullft_ops.ttft import retriever
from hullft_ops.ttft.retriever import Retriever

COUNT = 300
DIM = 24
# activeft picks in float32: scores nearer than this are told apart by its rounding.
ROUNDING = 2e-5

# activeft converts as NumPy 1 did.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)


def unit(shape, seed):
    vectors = np.random.default_rng(seed).standard_normal(shape)
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors.astype(np.float32)


EMBEDDINGS = unit((COUNT, DIM), 0)


def flat_index(metric=faiss.METRIC_INNER_PRODUCT):
    index = faiss.IndexFlat(DIM, metric)
    index.add(EMBEDDINGS)
    return index


def assert_agree(ours, theirs, targets, noise):
    """The same shapes and dtypes, and the same answer for one query up to a pick at which two
    candidates are level in float32."""
    for x, y in zip(ours[:3], theirs[:3], strict=True):
        assert x.shape == y.shape
        assert x.dtype == y.dtype

    values, picks, rows = ours[:3]
    their_values, their_picks, their_rows = theirs[:3]
    apart = np.flatnonzero(picks != their_picks)
    same = int(apart[0]) if len(apart) else len(picks)
    error = values[:same] - their_values[:same]

    assert same >= 5
    assert np.abs(error).max() < ROUNDING
    assert np.array_equal(rows[:same], their_rows[:same])

    if same < len(picks):
        left = reference.variance_after(
            torch.from_numpy(EMBEDDINGS).double(),
            torch.from_numpy(targets).double(),
            picks[:same].tolist(),
            noise,
        )
        difference = left[picks[same]] - left[their_picks[same]]
        assert abs(difference) < ROUNDING


@pytest.mark.parametrize(
    ("noise", "options", "call", "targets"),
    [
        (0.01, {}, {"N": 8, "K": 60}, 1),
        (0.2, {}, {"N": 20, "K": None}, 1),
        (0.01, {}, {"N": 8, "K": 0}, 1),
        (0.01, {"also_query_opposite": False}, {"N": 8, "K": 40}, 3),
        (1.0, {}, {"N": 8, "K": 40, "mean_pooling": True}, 3),
        (0.01, {"device": "cpu"}, {"N": 8, "K": 100, "threads": 2}, 2),
    ],
)
def test_search_agrees(noise, options, call, targets):
    ours = Retriever(flat_index(), llambda=noise, **options)
    theirs = activeft.Retriever(flat_index(), llambda=noise, **options)
    for seed in range(3):
        query = unit((targets, DIM), 10 + seed)
        result = ours.search(query, **call)
        expected = theirs.search(query, **call)
        if call.get("mean_pooling"):
            query = query.mean(axis=0, keepdims=True)

        assert_agree(result, expected, query, noise)


def test_batch_search_agrees():
    ours = Retriever(flat_index())
    theirs = activeft.Retriever(flat_index())
    queries = unit((3, 2, DIM), 20)
    batch = ours.batch_search(queries, 7, 50)[:3]
    expected = theirs.batch_search(queries, 7, 50)[:3]

    for x, y in zip(batch, expected, strict=True):
        assert x.shape == y.shape

    for b, query in enumerate(queries):
        result = [array[b] for array in batch]
        assert_agree(result, theirs.search(query, 7, 50), query, 0.01)


@pytest.mark.parametrize("opposite", [True, False])
def test_only_faiss_agrees(opposite):
    options = {"only_faiss": True, "also_query_opposite": opposite}
    ours = Retriever(flat_index(), **options)
    theirs = activeft.Retriever(flat_index(), **options)
    queries = unit((4, 1, DIM), 30)
    result = ours.batch_search(queries, 9, 20)
    expected = theirs.batch_search(queries, 9, 20)

    for x, y in zip(result[:3], expected[:3], strict=True):
        assert np.array_equal(x, y)

    assert result[3]._fields == expected[3]._fields
    assert result[3].sift == expected[3].sift == 0


def test_the_signature_is_theirs():
    for name in ("__init__", "search", "batch_search"):
        ours = inspect.signature(getattr(Retriever, name)).parameters
        theirs = inspect.signature(getattr(activeft.Retriever, name)).parameters
        shared = [name for name in ours if name != "method"]

        assert shared == [*theirs][: len(shared)]


def test_attributes_are_there():
    ours = Retriever(flat_index())
    theirs = activeft.Retriever(flat_index())

    for name in vars(theirs):
        assert hasattr(ours, name)

    assert ours.acquisition_function is None


def test_more_candidates_than_there_are_is_all_of_them():
    queries = unit((2, 1, DIM), 39)
    for options in ({}, {"only_faiss": True}, {"also_query_opposite": False}):
        ours = Retriever(flat_index(), **options)
        every = ours.batch_search(queries, 9, COUNT)
        more = ours.batch_search(queries, 9, 5 * COUNT)
        for x, y in zip(every[:3], more[:3], strict=True):
            assert np.array_equal(x, y)


def test_an_empty_batch():
    nothing = np.empty((0, 2, DIM), np.float32)
    for options in ({}, {"only_faiss": True}):
        ours = Retriever(flat_index(), **options)
        values, indices, rows, _ = ours.batch_search(nothing, 4, 20)

        assert values.shape == indices.shape == (0, 4)
        assert rows.shape == (0, 4, DIM)
        assert values.dtype == rows.dtype == np.float32
        assert indices.dtype == np.int64


@pytest.mark.parametrize(
    ("has_gpu", "built_for", "kind"),
    [
        (True, "13.0", "cuda"),
        (True, "", "cpu"),
        (False, "13.0", "cpu"),
    ],
)
def test_the_default_device_can_run_the_operators(
    monkeypatch, has_gpu, built_for, kind
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.setattr(retriever, "build_info", lambda: {"cuda": built_for})

    assert Retriever(flat_index()).device.type == kind
    assert str(Retriever(flat_index(), device="cuda:1").device) == "cuda:1"


def test_an_index_that_returns_fewer_than_asked():
    index = faiss.index_factory(DIM, "IVF20,Flat", faiss.METRIC_INNER_PRODUCT)
    index.train(EMBEDDINGS)
    index.add(EMBEDDINGS)
    index.nprobe = 2
    ours = Retriever(index, also_query_opposite=False)
    values, indices, rows, seconds = ours.search(unit((1, DIM), 32), 5, COUNT)

    assert (indices >= 0).all()
    assert np.array_equal(rows, EMBEDDINGS[indices])
    assert np.isfinite(values).all()
    assert seconds.faiss > 0 < seconds.sift


def test_index_by_distance():
    distance = Retriever(flat_index(faiss.METRIC_L2), also_query_opposite=False)
    inner = Retriever(flat_index(), also_query_opposite=False)
    query = unit((1, DIM), 33)  # of unit norm like the rows: the same neighbours
    indices = distance.search(query, 5, 40)[1]
    expected = inner.search(query, 5, 40)[1]

    assert np.array_equal(indices, expected)


@pytest.mark.filterwarnings("error")
def test_queries_may_be_any_view_and_numbers_of_numpy():
    queries = unit((4, 2, DIM), 3)
    backwards = queries[::-1].copy()[::-1]
    backwards.setflags(write=False)
    ours = Retriever(flat_index())

    indices = ours.batch_search(
        backwards,
        np.int64(5),
        np.int32(20),
        threads=np.uint8(2),
    )[1]
    expected = ours.batch_search(queries, 5, 20)[1]

    assert np.array_equal(indices, expected)


def test_threads_are_as_before():
    of_faiss = faiss.omp_get_max_threads()
    of_torch = torch.get_num_threads()
    query = unit((1, DIM), 34)

    Retriever(flat_index()).search(query, 2, 5, threads=3)

    assert faiss.omp_get_max_threads() == of_faiss
    assert torch.get_num_threads() == of_torch


def test_vectors_of_the_index_that_are_not_finite(device):
    vectors = EMBEDDINGS.copy()
    vectors[7] = np.inf
    index = faiss.IndexFlatIP(DIM)
    index.add(vectors)
    ours = Retriever(index, also_query_opposite=False, device=device)
    queries = np.ones((1, 1, DIM), np.float32)
    with pytest.raises(ValueError, match=r"NaN or infinity"):
        ours.batch_search(queries, 5, 20)


def test_what_cuda_marks_is_an_error(monkeypatch):
    """On CUDA the operators cannot raise: they mark the query by -1."""
    select = hullft_ops.sift_select

    def marked(*arguments, **options):
        result = select(*arguments, **options)
        result.picks[1] = -1
        return result

    monkeypatch.setattr(hullft_ops, "sift_select", marked)
    ours = Retriever(flat_index())
    queries = unit((3, 1, DIM), 40)
    message = "^Retriever: the candidates of query 1 have NaN or infinity"

    with pytest.raises(ValueError, match=message):
        ours.batch_search(queries, 5, 20)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"acquisition_function": "MMR"}, "acquisition_function must be None"),
        ({"fast": True}, "acquisition_function must be None and fast False"),
        ({"llambda": 0.0}, "llambda must be finite and > 0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=f"^Retriever: {message}"):
        Retriever(flat_index(), **options)
    with pytest.raises(ValueError, match="index by inner product, got metric type 1"):
        Retriever(flat_index(faiss.METRIC_L2))


QUERY = unit((1, DIM), 35)


@pytest.mark.parametrize(
    ("query", "n", "k", "message"),
    [
        (QUERY[0], 2, 5, r"queries must have shape \[n, m, 24\], got \[1, 24\]"),
        (QUERY[:, :5], 2, 5, r"queries must have shape .* got \[1, 1, 5\]"),
        (QUERY * np.nan, 2, 5, "queries have NaN or infinity"),
        (QUERY, 0, 5, "N must be in 1"),
        (QUERY, 2, -1, "K must be in 0"),
    ],
)
def test_bad_searches_are_refused(query, n, k, message):
    with pytest.raises(ValueError, match=f"^Retriever: {message}"):
        Retriever(flat_index()).search(query, n, k)


def test_too_few_candidates_are_refused():
    with pytest.raises(ValueError, match="N is 6, only 5 are searched for"):
        Retriever(flat_index(), only_faiss=True).search(QUERY, 6, 5)
    with pytest.raises(ValueError, match="the index is empty"):
        Retriever(faiss.IndexFlatIP(DIM)).search(QUERY, 2, 5)

    index = faiss.index_factory(DIM, "IVF20,Flat", faiss.METRIC_INNER_PRODUCT)
    index.train(EMBEDDINGS)
    # All vectors are in the lists that a search of the opposite does not read.
    index.add(np.repeat(QUERY, 9, axis=0))
    with pytest.raises(ValueError, match="the index returns nothing for query 0"):
        Retriever(index, also_query_opposite=False).search(-QUERY, 2, 5)
