"""What the selection operators refuse: good arguments, and the changes that make them bad."""

from typing import Any, NamedTuple

import numpy as np
import torch

B = 2
K = 6
D = 4
POOL = torch.eye(K, D).repeat(B, 1, 1) + 0.1
QUERY = torch.ones(B, D)
ROWS = torch.zeros(B, 2, dtype=torch.int64)
NAN = float("nan")
INF = float("inf")

POOLS = {"pool": POOL, "query": QUERY}
EMBEDDINGS = {"embeddings": POOL[0], "candidates": ROWS, "query": QUERY}
GOOD: dict[str, dict[str, Any]] = {
    "fw_select": {**POOLS, "n_select": 3},
    "fw_select_indexed": {**EMBEDDINGS, "n_select": 3},
    "fw_lmo": {**POOLS, "current": torch.full((B, D), 0.25)},
    "integerize": {
        "support": POOL,
        "query": QUERY,
        "weights": torch.ones(B, K),
        "n_select": 3,
    },
    "simplex_lstsq": {**POOLS, "gap_tol": 0.0, "max_iter": 9},
    "nnls": {**POOLS, "gap_tol": 0.0, "max_iter": 9},
    "knn_select": {**POOLS, "n_select": 3},
    "knn_select_indexed": {**EMBEDDINGS, "n_select": 2},
    "sift_select": {**POOLS, "n_select": 3},
    "sift_select_indexed": {**EMBEDDINGS, "n_select": 3},
}


GRAM = POOL @ POOL.mT
GRAM_FORM = {
    "pool": None,
    "query": None,
    "gram": GRAM,
    "products": torch.ones(B, K),
    "square": torch.ones(B),
}


def operator_of(function: str) -> Any:
    """The functions that end in _indexed are the same operator with candidates."""
    return getattr(torch.ops.hullft_ops, function.removesuffix("_indexed"))


class Bad(NamedTuple):
    """A call of the operator with some good arguments changed."""

    operator: str
    message: str
    changes: dict[str, Any]

    def arguments(self) -> dict[str, Any]:
        return GOOD[self.operator] | self.changes

    def of_operator(self) -> tuple[Any, dict[str, Any]]:
        """The operator and its arguments: a function that ends in _indexed has no own."""
        arguments = self.arguments()
        if "embeddings" in arguments:
            arguments["pool"] = arguments.pop("embeddings")
        if "products" in arguments:
            arguments["pool"] = arguments.pop("gram")
            arguments["query"] = arguments.pop("products")
            arguments["is_gram"] = True
            del arguments["square"]

        return operator_of(self.operator), arguments

    def pattern(self) -> str:
        return f"^{self.operator}: {self.message}"

    def argument(self) -> str:
        """The first word of the message."""
        return self.message.split()[0]


def bad(operator: str, message: str, **changes: Any) -> Bad:
    return Bad(operator, message, changes)


def bad_gram(operator: str, message: str, **changes: Any) -> Bad:
    return Bad(operator, message, GRAM_FORM | changes)


def poisoned(tensor: torch.Tensor, *index: int, value: float = NAN) -> torch.Tensor:
    tensor = tensor.clone()
    tensor[index] = value
    return tensor


def shrunk(tensor: torch.Tensor, size: int) -> torch.Tensor:
    """A tensor whose storage has ``size`` bytes left."""
    tensor = tensor.clone()
    tensor.untyped_storage().resize_(size)
    return tensor


# A TypeError of the public functions. torch itself refuses these for the operators.
WRONG_OBJECTS = [
    bad("fw_select", "pool must be a torch.Tensor, got list", pool=[[1.0]]),
    bad("fw_select", "pool .* ndarray; torch.from_numpy", pool=np.ones((6, 4))),
    bad("fw_select", "pool must be dense, got layout", pool=POOL.to_sparse()),
    bad(
        "fw_select",
        r"pool_sizes .* got list; torch.tensor\(pool_sizes\) makes one$",
        pool_sizes=[6, 2],
    ),
    bad("fw_select", "n_select must be an int, got float", n_select=3.0),
    bad("fw_select", "n_select must be an int, got bool", n_select=True),
    bad("fw_select", "max_support must be an int, got float", max_support=2.0),
    bad("simplex_lstsq", "pool must be a torch.Tensor, got list", pool=[[1.0]]),
    bad("simplex_lstsq", "max_iter must be an int, got str", max_iter="9"),
    bad_gram("nnls", "gram must be a torch.Tensor, got list", gram=[[1.0]]),
    bad_gram("nnls", "products must be a torch.Tensor, got list", products=[1.0]),
    bad_gram("nnls", "square must be a torch.Tensor, got float", square=1.0),
    bad("fw_select", "tol must be a number, got str", tol="1"),
    bad("fw_lmo", "current must be a torch.Tensor, got list", current=[1.0]),
    bad("sift_select", "noise must be a number, got str", noise="1"),
]

# A TypeError of the public functions, a ValueError of the operators.
WRONG_DTYPES = [
    bad("fw_select", "pool must be float32, .*int32", pool=POOL.int()),
    bad("fw_select", "query is .*float64, pool is .*float32", query=QUERY.double()),
    bad("fw_select", "pool_sizes must be int.*float32", pool_sizes=torch.ones(B)),
    bad("fw_select_indexed", "candidates must be int.*bool", candidates=ROWS.bool()),
    bad("fw_lmo", "current is .*float64, ", current=QUERY.double()),
    bad(
        "integerize",
        "weights must be float32 or .*16",
        weights=torch.ones(B, K).half(),
    ),
    bad("nnls", "query is .*float64, pool is .*float32", query=QUERY.double()),
    bad_gram("nnls", "gram must be float32, .*int32", gram=GRAM.int()),
    bad("sift_select", "query is .*float64, pool is .*float32", query=QUERY.double()),
]

# A ValueError of both.
WRONG_VALUES = [
    bad("fw_select", "query has dim 5, pool has dim 4", query=torch.ones(B, 5)),
    bad("fw_select", "(pool|query) .*batch", query=torch.ones(3, D)),
    bad("fw_select", "pool must have", pool=torch.ones(D)),
    bad("fw_select", "query must have", query=QUERY[None]),
    bad("fw_select", "pool is empty", pool=torch.ones(B, 0, D)),
    bad("fw_select", "n_select must be in 1.* got 0", n_select=0),
    bad("fw_select", "n_select must be in 1.* got 2147483648", n_select=2**31),
    bad("fw_select", "max_iter must be in 0.* got -1", max_iter=-1),
    bad("fw_select", "swap_passes must be in 0.* got -1", swap_passes=-1),
    bad("fw_select", "variant must be one of .*, corrective, got", variant="fast"),
    bad("fw_select", "max_support must be in 1.* got 0", max_support=0),
    bad("fw_select", "max_support is 4, n_select is 3", max_support=4),
    bad("simplex_lstsq", "query has dim 5, pool has dim 4", query=torch.ones(B, 5)),
    bad("simplex_lstsq", "max_iter must be in 0.* got -1", max_iter=-1),
    bad("simplex_lstsq", "pool is empty", pool=torch.ones(B, 0, D)),
    bad("nnls", "pool_sizes .*1", pool_sizes=torch.tensor([1])),
    bad_gram(
        "simplex_lstsq", "gram must be square, .*2, 6, 4", gram=POOL, products=QUERY
    ),
    bad("fw_select", "pool_sizes .*1", pool_sizes=torch.tensor([1])),
    bad("fw_select_indexed", "candidates .*3", candidates=torch.zeros(3, 2).long()),
    bad("fw_select_indexed", "candidates is empty", candidates=ROWS[:, :0]),
    bad("fw_select_indexed", "embeddings must have", embeddings=POOL),
    bad("fw_lmo", "current .*4", current=QUERY[0]),
    bad("integerize", "weights .*2, 3", weights=torch.ones(B, 3)),
    bad("knn_select", "n_select is 7, pool has 6 rows", n_select=7),
    bad("knn_select_indexed", "n_select is 3, pool has 2 rows", n_select=3),
    bad("knn_select_indexed", "candidates .*1", candidates=ROWS[:1]),
    bad("sift_select", "query has dim 3, pool has dim 4", query=QUERY[:, :3]),
    bad("sift_select", "query has no targets", query=QUERY[:, None][:, :0]),
    bad("sift_select", "query must have", query=QUERY[None, None]),
    bad("sift_select", "n_select must be in 1.* got 0", n_select=0),
    bad("sift_select", "noise must be finite and > 0, got 0", noise=0.0),
    bad("sift_select", "noise must be finite and > 0, got -1", noise=-1.0),
    bad("sift_select", "noise must be finite and > 0, got nan", noise=NAN),
    bad("sift_select", "noise must be finite and > 0, got inf", noise=INF),
    bad("sift_select_indexed", "candidates .*1", candidates=ROWS[:1]),
]

# A ValueError of the public functions alone. They take one query without a batch too.
WRONG_IN_PUBLIC = [
    bad("fw_select", "tol must be finite and >= 0, got -0.001", tol=-1e-3),
    bad("fw_select", "tol must be finite and >= 0, got nan", tol=NAN),
    bad("fw_select", "gap_tol must be finite and >= 0, got -1", gap_tol=-1.0),
    bad("nnls", "gap_tol must be finite and >= 0, got nan", gap_tol=NAN),
    bad("nnls", "takes pool and query, or gram and products, not", gram=GRAM),
    bad("nnls", "takes pool and query, or gram and products, not", square=GRAM),
    bad_gram("nnls", "products has dim 4, gram has dim 6", products=QUERY),
    bad_gram("simplex_lstsq", "square .*3", square=torch.ones(3)),
    bad_gram("nnls", "gram has a batch of 2", products=torch.ones(K), square=None),
    bad_gram("nnls", "gram must have shape .*got .6.", gram=torch.ones(K)),
    bad("fw_select", "pool has a batch of 2, query has shape .4.", query=QUERY[0]),
    bad("fw_select", "pool is empty", pool=POOL[..., :0], query=QUERY[:, :0]),
    bad("fw_select", "n_select must be in .* got 1180591620", n_select=2**70),
    bad(
        "fw_select",
        "pool_sizes needs a batch",
        pool=POOL[0],
        query=QUERY[0],
        pool_sizes=torch.tensor([1]),
    ),
    bad("sift_select_indexed", "query must have shape .*got ..$", query=QUERY[0, 0]),
    bad("sift_select_indexed", "candidates .2. and query .2, 4.", candidates=ROWS[0]),
]

# A ValueError of the operators alone. They want a batch, and look at storages.
WRONG_FOR_OPERATORS = [
    bad("fw_select", "pool needs 192 bytes of .* has 0", pool=shrunk(POOL, 0)),
    bad("fw_select", "pool needs 192 bytes of .* has 188", pool=shrunk(POOL, 188)),
    bad(
        "fw_select",
        "pool_sizes needs 16 bytes",
        pool_sizes=shrunk(torch.ones(B).long(), 8),
    ),
    bad("fw_select", "query must have 2 dimensions, got 1", query=QUERY[0]),
    bad("fw_select", "pool_sizes must have", pool_sizes=torch.ones(1, 2).long()),
    bad("sift_select", "query must have 2 or 3 dimensions, got 1", query=QUERY[0]),
    bad("sift_select", "noise must .*reciprocal, got 1e-310", noise=1e-310),
]

HUGE = 1e200
OVERFLOW = ".*finite but their inner products or weights overflow"
FAR_APART = torch.tensor(
    [
        [1e150, 0.0],
        [-1e150, 1e149],
        [1e160, -1e160],
    ],
    dtype=torch.float64,
)

# What is wrong with the values of a tensor, which on CUDA shows in the outputs instead.
WRONG_CONTENTS = [
    bad("fw_select", "pool_sizes.1. is -1, ", pool_sizes=torch.tensor([1, -1])),
    bad("fw_select", "pool_sizes.0. is 7, ", pool_sizes=torch.tensor([7, 1])),
    bad("fw_select", "pool_sizes.0. is 1099", pool_sizes=torch.tensor([2**40, 1])),
    bad("fw_select", "pool has NaN .* row 4 for query 1", pool=poisoned(POOL, 1, 4, 2)),
    bad("fw_select", "pool .* row 5", pool=poisoned(POOL, 0, 5, 0, value=-INF)),
    bad("fw_select", "query.1. has NaN or infinity", query=poisoned(QUERY, 1, 0)),
    bad(
        "fw_select",
        "pool has NaN or infinity in row 5 for query 0",
        pool=poisoned(POOL, 0, 5, 0, value=INF),
        query=torch.zeros(B, D),
    ),
    bad("fw_select", OVERFLOW, pool=POOL.double() * HUGE, query=QUERY.double() * HUGE),
    bad("fw_select", OVERFLOW, pool=POOL.double() * HUGE, query=QUERY.double()),
    bad(  # the gap's float32
        "fw_select",
        OVERFLOW,
        pool=POOL * 1e20,
        query=QUERY * 1e20,
    ),
    bad(  # by a row that is not in the support
        "fw_select",
        OVERFLOW,
        pool=FAR_APART,
        query=torch.full((2,), 1e-150, dtype=torch.float64),
    ),
    bad(
        "fw_select_indexed",
        "embeddings has NaN or infinity in row 3 for query 1",
        embeddings=poisoned(POOL[0], 3, 1),
        candidates=torch.tensor([[0, 1], [2, 3]]),
    ),
    bad(
        "fw_select_indexed",
        "candidates has -1 at position 0 for query 1, .*; -1 is absent at the end alone",
        candidates=poisoned(ROWS, 1, 0, value=-1),
    ),
    bad(
        "fw_select_indexed",
        "candidates has 6 at position 1 for query 0, embeddings has 6 rows$",
        candidates=poisoned(ROWS, 0, 1, value=6),
    ),
    bad(
        "simplex_lstsq",
        "pool has NaN or infinity in row 4 for query 1",
        pool=poisoned(POOL, 1, 4, 2),
    ),
    bad("simplex_lstsq", "pool_sizes.0. is 7, ", pool_sizes=torch.tensor([7, 1])),
    bad("nnls", "query.1. has NaN or infinity", query=poisoned(QUERY, 1, 0)),
    bad_gram("nnls", "gram has NaN .* row 2 for query 1", gram=poisoned(GRAM, 1, 2, 3)),
    bad_gram(
        "nnls",
        "products.1. has NaN or infinity",
        products=poisoned(torch.ones(B, K), 1, 0),
    ),
    bad("nnls", OVERFLOW, pool=POOL.double() * HUGE, query=QUERY.double() * HUGE),
    bad("fw_lmo", "current.1. has NaN or infinity", current=poisoned(QUERY, 1, 0)),
    bad(
        "fw_select",
        "query.1. has NaN or infinity",
        query=poisoned(QUERY, 1, 0),
        pool_sizes=torch.tensor([6, 0]),
    ),
    bad("fw_lmo", "pool_sizes.1. is 0, ", pool_sizes=torch.tensor([6, 0])),
    bad("fw_lmo", "query.1. has NaN or infinity", query=poisoned(QUERY, 1, 0)),
    bad("fw_lmo", "pool has NaN .* row 3 for query 1", pool=poisoned(POOL, 1, 3, 0)),
    bad("fw_lmo", OVERFLOW, pool=POOL * 1e20, query=QUERY * 1e20),
    bad(
        "integerize",
        "support has NaN .* row 2 for query 0",
        support=poisoned(POOL, 0, 2, 1),
    ),
    bad(
        "integerize",
        "weights.1. has NaN",
        weights=poisoned(torch.ones(B, K), 1, 2, value=INF),
    ),
    bad(
        "integerize",
        "weights.0. has a sum that float64 does not hold",
        weights=torch.full((B, K), 1e308, dtype=torch.float64),
        n_select=2**31 - 1,
    ),
    bad(
        "knn_select",
        "pool has NaN .* row 2 for query 0",
        pool=poisoned(POOL, 0, 2, 1),
    ),
    bad("knn_select", OVERFLOW, pool=POOL * 1e20, query=QUERY * 1e20),
    bad(
        "knn_select",
        "n_select is 3, the pool of query 1",
        pool_sizes=torch.tensor([6, 2]),
    ),
    bad(
        "knn_select_indexed",
        "candidates has -1 at position 0 for query 1",
        candidates=poisoned(ROWS, 1, 0, value=-1),
    ),
    bad("sift_select", "pool_sizes.1. is 7, ", pool_sizes=torch.tensor([6, 7])),
    bad(
        "sift_select",
        "pool has NaN .* row 2 for query 1",
        pool=poisoned(POOL, 1, 2, 3),
    ),
    bad("sift_select", "query.1. has NaN", query=poisoned(QUERY[:, None], 1, 0, 0)),
    bad("sift_select", OVERFLOW, pool=POOL.double() * HUGE, query=QUERY.double()),
    bad(
        "sift_select",
        OVERFLOW,
        pool=POOL * 1e10,
        query=torch.eye(B, D) * 1e25,
        n_select=1,
    ),
    bad(  # every score is infinity by infinity, and the last lanes have no candidate
        "sift_select",
        OVERFLOW,
        pool=torch.full((3, 1), 1e154, dtype=torch.float64),
        query=torch.full((1,), 1e154, dtype=torch.float64),
        n_select=9,
        noise=1.7e308,
    ),
    bad(
        "fw_select_indexed",
        "candidates has -1 at position 1 .*; without pool_sizes, -1 at the end is absent",
        candidates=poisoned(ROWS, 0, 1, value=-1),
        pool_sizes=torch.tensor([2, 2]),
    ),
    bad(
        "sift_select_indexed",
        "candidates has -7 at position 1 for query 0, embeddings has 6 rows$",
        candidates=poisoned(ROWS, 0, 1, value=-7),
    ),
]
