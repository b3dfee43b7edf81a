"""Retriever answers as activeft.sift.Retriever does."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import faiss
import numpy as np
import pytest
import torch
from activeft import sift as activeft

import hullft_ops
from hullft_ops import reference
from hullft_ops.ttft import Retriever
from hullft_ops.ttft.retrieval import activeft as retriever
from hullft_ops.ttft.retrieval.activeft import RetrievalTime

M, D = 300, 24
# activeft picks in float32: scores nearer than this are told apart by its rounding.
ROUNDING = 2e-5

# activeft converts as NumPy 1 did.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)


def unit(shape: tuple[int, ...], seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal(shape)
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(
        np.float32
    )


EMBEDDINGS = unit((M, D), 0)


def flat_index(metric: int = faiss.METRIC_INNER_PRODUCT) -> faiss.Index:
    index = faiss.IndexFlat(D, metric)
    index.add(EMBEDDINGS)
    return index


def ivf_index() -> faiss.Index:
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(D), D, 20, faiss.METRIC_INNER_PRODUCT)
    index.train(EMBEDDINGS)
    index.add(EMBEDDINGS)
    index.nprobe = 2
    return index


def assert_agree(
    ours: tuple[np.ndarray, np.ndarray, np.ndarray, RetrievalTime],
    theirs: tuple[np.ndarray, np.ndarray, np.ndarray, activeft.RetrievalTime],
    targets: np.ndarray,
    noise: float,
) -> None:
    """The same shapes and dtypes, and the same answer for one query up to a pick at which two
    candidates are level in float32."""
    for x, y in zip(ours[:3], theirs[:3], strict=True):
        assert x.shape == y.shape
        assert x.dtype == y.dtype
    assert ours[3]._fields == theirs[3]._fields
    apart = np.flatnonzero(ours[1] != theirs[1])
    same = int(apart[0]) if len(apart) else len(ours[1])
    assert np.abs(ours[0][:same] - theirs[0][:same]).max(initial=0) < ROUNDING
    assert np.array_equal(ours[2][:same], theirs[2][:same])
    if same < len(ours[1]):
        pool = torch.from_numpy(EMBEDDINGS).double()
        picks = ours[1][:same].tolist()
        left = reference.variance_after(
            pool, torch.from_numpy(targets).double(), picks, noise
        )
        assert abs(left[ours[1][same]] - left[theirs[1][same]]) < ROUNDING
    assert same >= 5


@pytest.mark.parametrize(
    ("constructor", "call", "m"),
    [
        ({}, {"N": 8, "K": 60}, 1),
        ({"llambda": 0.2}, {"N": 20, "K": None}, 1),
        ({}, {"N": 8, "K": 0}, 1),
        ({"also_query_opposite": False}, {"N": 8, "K": 40}, 3),
        ({"llambda": 1.0}, {"N": 8, "K": 40, "mean_pooling": True}, 3),
        ({"device": torch.device("cpu")}, {"N": 8, "K": 100, "threads": 2}, 2),
    ],
)
def test_search_agrees(
    constructor: dict[str, object], call: dict[str, object], m: int
) -> None:
    ours, theirs = (
        cls(flat_index(), **constructor) for cls in (Retriever, activeft.Retriever)
    )
    for seed in range(3):
        query = unit((m, D), 10 + seed)
        targets = (
            query.mean(axis=0, keepdims=True) if call.get("mean_pooling") else query
        )
        noise = float(constructor.get("llambda", 0.01))  # type: ignore[arg-type]
        assert_agree(
            ours.search(query, **call), theirs.search(query, **call), targets, noise
        )


def test_batch_search_agrees() -> None:
    ours, theirs = Retriever(flat_index()), activeft.Retriever(flat_index())
    queries = unit((3, 2, D), 20)
    values, indices, rows, _ = ours.batch_search(queries, 7, 50)
    batch = theirs.batch_search(queries, 7, 50)
    assert [x.shape for x in (values, indices, rows)] == [x.shape for x in batch[:3]]
    for b, query in enumerate(queries):
        one = (values[b], indices[b], rows[b], RetrievalTime(0.0, 0.0))
        assert_agree(one, theirs.search(query, 7, 50), query, 0.01)


@pytest.mark.parametrize("opposite", [True, False])
def test_only_faiss_agrees(opposite: bool) -> None:
    options = {"only_faiss": True, "also_query_opposite": opposite}
    ours, theirs = (
        cls(flat_index(), **options) for cls in (Retriever, activeft.Retriever)
    )
    queries = unit((4, 1, D), 30)
    found, expected = (
        ours.batch_search(queries, 9, 20),
        theirs.batch_search(queries, 9, 20),
    )
    assert all(
        np.array_equal(x, y) for x, y in zip(found[:3], expected[:3], strict=True)
    )
    assert found[3].sift == expected[3].sift == 0


CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("later", "wanted"),
    [
        ((0.5, True, CPU), (0.5, True, CPU)),
        ((1e-3, False), (1e-3, False, None)),
        ((None, True), (None, True, None)),
        # activeft 0.1.1
        ((True, CPU), (None, True, CPU)),
        ((False, CPU), (None, False, CPU)),
        ((True, None), (None, True, None)),
        ((True,), (None, True, None)),
    ],
)
def test_positional_arguments_mean_the_same(
    later: tuple[object, ...],
    wanted: tuple[object, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(retriever, "_device", lambda device: device)
    ours = Retriever(flat_index(), None, 0.3, False, False, *later)  # type: ignore[arg-type]
    assert (ours.alpha, ours.only_faiss, ours.device) == wanted
    ours.device = CPU
    query = unit((1, D), 31)
    assert ours.also_query_opposite is False
    assert ours.search(query, 3, 5, False, 1)[1].shape == (3,)


def test_lambda_has_two_names() -> None:
    query = unit((1, D), 37)
    one, other, default = (
        Retriever(flat_index(), **options).search(query, 10, 60)[0]
        for options in ({"lambda_": 0.2}, {"llambda": 0.2}, {})
    )
    assert np.array_equal(one, other)
    assert not np.array_equal(one, default)


def test_alpha_keeps_the_picks_that_are_certain_enough_for_their_place() -> None:
    queries = np.concatenate([EMBEDDINGS[:2].reshape(1, 2, D), unit((5, 2, D), 38)])
    whole = Retriever(flat_index()).batch_search(queries, 12, 60)
    found = Retriever(flat_index(), alpha=1.5).batch_search(queries, 12, 60)
    lengths = set()
    for values, ids, rows, *kept in zip(*whole[:3], *found[:3], strict=True):
        mask = [math.sqrt(-v) <= 1 / (1.5 * (i + 1)) for i, v in enumerate(values)]
        for column, of_kept in zip((values, ids, rows), kept, strict=True):
            assert np.array_equal(column[mask], of_kept)
            assert column.dtype == of_kept.dtype
        lengths.add(sum(mask))
    assert len(lengths) > 1
    one = Retriever(flat_index(), alpha=1.5).search(queries[1], 12, 60)
    for x, y in zip(one[:3], (column[1] for column in found[:3]), strict=True):
        assert np.array_equal(x, y)
    alike = Retriever(flat_index(), alpha=1e-3).batch_search(queries, 12, 60)
    assert [column.shape for column in alike[:3]] == [(6,)] * 3


def test_more_candidates_than_there_are_is_all_of_them() -> None:
    queries = unit((2, 1, D), 39)
    for options in ({}, {"only_faiss": True}, {"also_query_opposite": False}):
        wanted = Retriever(flat_index(), **options).batch_search(queries, 9, M)
        found = Retriever(flat_index(), **options).batch_search(queries, 9, 5 * M)
        assert all(
            np.array_equal(x, y) for x, y in zip(found[:3], wanted[:3], strict=True)
        )


def test_an_empty_batch() -> None:
    nothing = np.empty((0, 2, D), np.float32)
    for options in ({}, {"only_faiss": True}, {"method": "hullft"}):
        found = Retriever(flat_index(), **options).batch_search(nothing, 4, 20)[:3]
        assert [x.shape for x in found] == [(0, 4), (0, 4), (0, 4, D)]
        assert [x.dtype for x in found] == [np.float32, np.int64, np.float32]
    found = Retriever(flat_index(), alpha=1.0).batch_search(nothing, 4, 20)[:3]
    assert [x.shape for x in found] == [(0,)] * 3


def test_attributes_are_there() -> None:
    ours, theirs = Retriever(flat_index()), activeft.Retriever(flat_index())
    assert all(hasattr(ours, name) for name in vars(theirs))
    assert ours.acquisition_function is None
    with pytest.raises(AttributeError):
        ours.acquisition_function = Acquisition()  # type: ignore[misc, assignment]


@pytest.mark.parametrize("unusable", ["", "the driver is for CUDA 12.4"])
def test_the_default_device_can_run_the_operators(
    monkeypatch: pytest.MonkeyPatch, unusable: str
) -> None:
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(retriever, "build_info", lambda: {"cuda": "13.0"})
    monkeypatch.setattr(
        retriever, "cuda_unusable", lambda i: asked.append(i) or unusable
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        device = Retriever(flat_index()).device
        given = Retriever(flat_index(), device="cuda:1").device
    assert (device.type, str(given)) == ("cpu" if unusable else "cuda", "cuda:1")
    assert asked == [0]
    said = [(str(warning.message), warning.filename) for warning in caught]
    assert said == (
        [(f"Retriever: selects on the CPU: {unusable}", __file__)] if unusable else []
    )


def test_a_build_without_kernels_selects_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(retriever, "build_info", lambda: {"cuda": ""})
    monkeypatch.setattr(retriever, "cuda_unusable", lambda i: "never asked")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Retriever(flat_index()).device.type == "cpu"


def test_an_index_that_finds_fewer_than_asked() -> None:
    retriever = Retriever(ivf_index(), also_query_opposite=False)
    query = unit((1, D), 32)
    values, indices, rows, seconds = retriever.search(query, 5, M)
    assert (indices >= 0).all()
    assert np.array_equal(rows, EMBEDDINGS[indices])
    assert np.isfinite(values).all()
    assert seconds.faiss > 0 < seconds.sift


def test_index_by_distance() -> None:
    retriever = Retriever(flat_index(faiss.METRIC_L2), also_query_opposite=False)
    inner = Retriever(flat_index(), also_query_opposite=False)
    query = unit((1, D), 33)  # of unit norm like the rows: the same neighbours
    assert np.array_equal(
        retriever.search(query, 5, 40)[1], inner.search(query, 5, 40)[1]
    )


def test_hullft_gives_the_multiset() -> None:
    retriever = Retriever(flat_index(), method="hullft", also_query_opposite=False)
    query = EMBEDDINGS[:4].mean(axis=0, keepdims=True)
    weights, indices, rows, _ = retriever.search(query, 12, 100)
    assert np.array_equal(rows, EMBEDDINGS[indices])
    mean = rows.mean(axis=0)
    nearest = Retriever(flat_index(), only_faiss=True, also_query_opposite=False)
    plain = nearest.search(query, 12, 100)[2].mean(axis=0)
    assert np.linalg.norm(mean - query[0]) < np.linalg.norm(plain - query[0])
    assert (np.diff(weights) <= 0).all()


@pytest.mark.filterwarnings("error")
def test_queries_may_be_any_view_of_an_array() -> None:
    queries = unit((4, 2, D), 3)
    backwards = queries[::-1].copy()[::-1]
    backwards.setflags(write=False)
    wanted = Retriever(flat_index()).batch_search(queries, 5, 20)[1]
    assert np.array_equal(
        Retriever(flat_index()).batch_search(backwards, 5, 20)[1], wanted
    )


def test_numpy_integers_are_integers() -> None:
    queries = unit((2, 1, D), 36)
    wanted = Retriever(flat_index()).batch_search(queries, 5, 20, threads=2)
    found = Retriever(flat_index()).batch_search(
        queries, np.int64(5), np.int32(20), threads=np.uint8(2)
    )
    assert all(np.array_equal(x, y) for x, y in zip(found[:3], wanted[:3], strict=True))
    with pytest.raises(TypeError, match="N must be an int, got bool"):
        Retriever(flat_index()).batch_search(queries, np.bool_(True), 20)


def test_threads_are_as_before() -> None:
    before = faiss.omp_get_max_threads(), torch.get_num_threads()
    Retriever(flat_index()).search(unit((1, D), 34), 2, 5, threads=3)
    assert (faiss.omp_get_max_threads(), torch.get_num_threads()) == before


class Acquisition:
    pass


class ReachesNothing:
    """An index whose search visits no vector, as one of empty cells does."""

    def __init__(self, index: faiss.Index) -> None:
        self.d, self.ntotal, self.metric_type = index.d, index.ntotal, index.metric_type

    def search_and_reconstruct(
        self, queries: np.ndarray, k: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        shape = (len(queries), k)
        scores = np.full(shape, np.finfo(np.float32).min)
        return scores, np.full(shape, -1), np.full((*shape, self.d), np.nan, np.float32)


@pytest.mark.parametrize("method", ["sift", "hullft"])
def test_vectors_of_the_index_that_are_not_finite(
    method: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On CUDA the operators cannot raise: they mark the query."""
    vectors = EMBEDDINGS.copy()
    vectors[7] = np.inf
    index = faiss.IndexFlatIP(D)
    index.add(vectors)
    queries = np.concatenate([-np.ones((1, 1, D)), np.ones((1, 1, D))]).astype(
        np.float32
    )
    options = {"method": method, "also_query_opposite": False, "device": device}
    with pytest.raises(ValueError, match=r"NaN or infinity"):
        Retriever(index, **options).batch_search(queries, 5, 20)

    def as_on_cuda(select: Callable[..., Any]) -> Callable[..., Any]:
        def marked(pool: torch.Tensor, *args: object, **kwargs: object) -> Any:
            failed = ~pool.isfinite().all(-1).all(-1)
            found = select(pool.nan_to_num(posinf=0), *args, **kwargs)
            found = found._replace(
                indices=found.indices.masked_fill(failed[:, None], -1),
                weights=found.weights.masked_fill(failed[:, None], math.nan),
            )
            if "picks" not in found._fields:
                return found
            return found._replace(
                picks=found.picks.masked_fill(failed[:, None], -1),
                variance=found.variance.masked_fill(failed[:, None], math.nan),
            )

        return marked

    for name in ("fw_select", "sift_select"):
        monkeypatch.setattr(hullft_ops, name, as_on_cuda(getattr(hullft_ops, name)))
    message = "^Retriever: the candidates of query 1 have NaN or infinity"
    with pytest.raises(ValueError, match=message):
        Retriever(index, **options).batch_search(queries, 5, 20)
    found = Retriever(index, **options).batch_search(queries[:1], 5, 20)[1]
    assert ((found >= 0) & (found != 7)).all()


QUERY = unit((1, D), 35)
ERRORS: dict[str, tuple[Callable[[], object], str]] = {
    "acquisition": (
        lambda: Retriever(flat_index(), Acquisition()),  # type: ignore[arg-type]
        "Retriever: acquisition_function must be None, got Acquisition",
    ),
    "fast": (
        lambda: Retriever(flat_index(), fast=True),
        "fast must be False, got True",
    ),
    "llambda": (
        lambda: Retriever(flat_index(), llambda=0.0),
        "llambda must be finite and > 0",
    ),
    "method": (
        lambda: Retriever(flat_index(), method="knn"),
        "method must be one of sift, hullft",
    ),
    "opposite": (
        lambda: Retriever(flat_index(faiss.METRIC_L2)),
        "also_query_opposite needs an index by inner product, got metric type 1",
    ),
    "query rank": (
        lambda: Retriever(flat_index()).search(QUERY[0], 2, 5),
        "queries must have",
    ),
    "dim": (
        lambda: Retriever(flat_index()).search(QUERY[:, :5], 2, 5),
        f"queries have dim 5, the index has dim {D}",
    ),
    "K": (lambda: Retriever(flat_index()).search(QUERY, 2, -1), "K must be in 0"),
    "lambda_": (
        lambda: Retriever(flat_index(), lambda_=0.0),
        "lambda_ must be finite and > 0",
    ),
    "two lambdas": (
        lambda: Retriever(flat_index(), lambda_=0.2, llambda=0.3),
        "lambda_ is 0.2, llambda, its other name, is 0.3",
    ),
    "alpha": (
        lambda: Retriever(flat_index(), alpha=0),
        "alpha must be finite and > 0, got 0",
    ),
    "alpha of hullft": (
        lambda: Retriever(flat_index(), alpha=1.0, method="hullft"),
        "alpha stops sift, method is hullft",
    ),
    "N": (lambda: Retriever(flat_index()).search(QUERY, 0, 5), "N must be in 1"),
    "N > K": (
        lambda: Retriever(flat_index(), only_faiss=True).search(QUERY, 6, 5),
        "N is 6, only 5 are searched for",
    ),
    "empty": (
        lambda: Retriever(faiss.IndexFlatIP(D)).search(QUERY, 2, 5),
        "the index is empty",
    ),
    "nan": (
        lambda: Retriever(flat_index()).search(QUERY * np.nan, 2, 5),
        "queries have NaN or infinity",
    ),
    "nothing found": (
        lambda: Retriever(ReachesNothing(flat_index())).search(QUERY, 2, 5),  # type: ignore[arg-type]
        "the index finds nothing for query 0",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case: str) -> None:
    call, message = ERRORS[case]
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"only_faiss": 0.5}, "only_faiss must be a bool, got float"),
        ({"alpha": True, "only_faiss": True}, "alpha must be a number, got bool"),
        ({"alpha": "1"}, "alpha must be a number, got str"),
    ],
)
def test_type_errors(options: dict[str, object], message: str) -> None:
    with pytest.raises(TypeError, match=f"^Retriever: {message}$"):
        Retriever(flat_index(), **options)
