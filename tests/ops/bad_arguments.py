"""What the selection operators refuse: good arguments, and the changes that make them bad.

Each argument is spoiled in every way that its type allows; the other tables have what takes two
arguments, or has a check of its own.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

B = 2
K = 6
D = 4
POOL = torch.eye(K, D).repeat(B, 1, 1) + 0.1
QUERY = torch.ones(B, D)
SIZES = torch.tensor([K, 4])
ROWS = torch.tensor([[0, 1, 2], [3, 4, 5]])
GRAM = POOL @ POOL.mT
NAN = float("nan")
INF = float("inf")
HUGE = 1e200

# An operator and good arguments.
Form = tuple[str, dict[str, Any]]
POOLS = {"pool": POOL, "query": QUERY, "pool_sizes": SIZES}
OF_ROWS = {"pool": POOL[0], "query": QUERY, "candidates": ROWS, "n_select": 2}
FW: Form = ("fw_select", {**POOLS, "n_select": 3, "tol": 1e-5, "gap_tol": 0.0})
FW_OF_ROWS: Form = ("fw_select", OF_ROWS)
KNN: Form = ("knn_select", {**POOLS, "n_select": 3})
KNN_OF_ROWS: Form = ("knn_select", OF_ROWS)
SIFT: Form = ("sift_select", {**POOLS, "n_select": 3, "noise": 0.01})
SIFT_OF_ROWS: Form = ("sift_select", OF_ROWS)
LMO: Form = ("fw_lmo", {**POOLS, "current": torch.full((B, D), 0.25)})
WEIGHTS = torch.ones(B, K)
OF_SUPPORT = {"support": POOL, "query": QUERY, "support_sizes": SIZES}
INTEGERIZE: Form = ("integerize", {**OF_SUPPORT, "weights": WEIGHTS, "n_select": 3})
SIMPLEX: Form = ("simplex_lstsq", {**POOLS, "max_iter": 9, "gap_tol": 0.0})
NNLS: Form = ("nnls", {**POOLS, "max_iter": 9, "gap_tol": 0.0})
NNLS_OF_GRAM: Form = ("nnls", {"gram": GRAM, "products": WEIGHTS})
FORMS = [
    *(FW, FW_OF_ROWS, KNN, KNN_OF_ROWS, SIFT, SIFT_OF_ROWS),
    *(LMO, INTEGERIZE, SIMPLEX, NNLS, NNLS_OF_GRAM),
]


class Bad(NamedTuple):
    """A call that must fail, and the regular expression of its message."""

    operator: str
    message: str
    arguments: dict[str, Any]

    def of_operator(self) -> tuple[Any, dict[str, Any]]:
        """The torch op and its arguments."""
        arguments = dict(self.arguments)
        if "gram" in arguments:
            pool, query = arguments.pop("gram"), arguments.pop("products")
            arguments |= {"pool": pool, "query": query, "is_gram": True}

        return getattr(torch.ops.hullft_ops, self.operator), arguments

    def pattern(self) -> str:
        return f"^{self.operator}: {self.message}"

    def argument(self) -> str:
        """What the torch op calls the first word of the message."""
        word = self.message.split()[0]
        return "query" if word == "products" else word


def bad(form: Form, message: str, **changes: Any) -> Bad:
    operator, good = form
    return Bad(operator, message, good | changes)


def spoiled(
    kind: type | torch.dtype, change: Callable[[Any], Any], message: str
) -> Iterator[Bad]:
    """Each argument of that type or dtype changed."""
    for form in FORMS:
        for name, value in form[1].items():
            if kind in (type(value), getattr(value, "dtype", None)):
                yield bad(form, f"{name}{message}", **{name: change(value)})


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
    *spoiled(torch.Tensor, torch.Tensor.tolist, " must be a torch.Tensor, got list"),
    *spoiled(int, float, " must be an int, got float"),
    *spoiled(int, bool, " must be an int, got bool"),
    *spoiled(int, np.array, " must be an int, got ndarray"),
    *spoiled(float, str, " must be a number, got str"),
    bad(FW, "max_support must be an int, got float", max_support=2.0),
    bad(NNLS_OF_GRAM, "square must be a torch.Tensor, got float", square=1.0),
    bad(FW, "pool .* ndarray; torch.from_numpy", pool=np.ones((6, 4))),
    bad(FW, r".* list; torch.tensor\(pool_sizes\) makes one$", pool_sizes=[6, 2]),
]

# A TypeError of the public functions, a ValueError of the operators.
WRONG_DTYPES = [
    *spoiled(torch.float32, torch.Tensor.bool, ""),
    *spoiled(torch.int64, torch.Tensor.bool, " must be int"),
    bad(FW, "pool must be float32, .*int32", pool=POOL.int()),
    bad(FW, "query is .*float64, pool is .*float32", query=QUERY.double()),
    bad(INTEGERIZE, "weights must be float32 or .*16", weights=WEIGHTS.half()),
]

# A ValueError of both.
WRONG_VALUES = [
    *spoiled(torch.Tensor, lambda tensor: tensor[None, None], ""),
    *spoiled(int, lambda _: -1, " must be in .* got -1"),
    bad(FW, "query has dim 5, pool has dim 4", query=torch.ones(B, 5)),
    bad(FW, "(pool|query) .*batch", query=torch.ones(3, D)),
    bad(FW, "pool is empty", pool=torch.ones(B, 0, D)),
    bad(FW, "variant must be one of .*, corrective, got", variant="fast"),
    bad(FW, "max_support must be in 1.* got 0", max_support=0),
    bad(FW_OF_ROWS, "pool must have .*", pool=POOL),
    bad(FW_OF_ROWS, ".*candidates", candidates=ROWS[:, :0]),
    bad(FW_OF_ROWS, "candidates .*1", candidates=ROWS[:1]),
    bad(KNN, "n_select is 7, pool has 6 rows", n_select=7),
    bad(KNN_OF_ROWS, "n_select is 4, pool has 3 rows", n_select=4),
    bad(SIFT, "query has no targets", query=QUERY[:, None][:, :0]),
    bad(NNLS_OF_GRAM, "gram must be square", gram=POOL, products=QUERY),
]

# A ValueError of the public functions alone. They take one query without a batch too.
WRONG_IN_PUBLIC = [
    *spoiled(float, lambda _: NAN, " must be finite .*, got nan"),
    bad(FW, "tol must be finite and >= 0, got -0.001", tol=-1e-3),
    bad(SIFT, "noise must be finite and > 0, got 0", noise=0.0),
    bad(FW, "max_support is 4, n_select is 3", max_support=4),
    bad(FW, "n_select must be in .* got 1180591620", n_select=2**70),
    bad(FW, "pool has a batch of 2, query has shape .4.", query=QUERY[0]),
    bad(FW, "pool_sizes needs a batch", pool=POOL[0], query=QUERY[0]),
    bad(SIFT_OF_ROWS, "query must have shape .*got ..$", query=QUERY[0, 0]),
    bad(SIFT_OF_ROWS, "candidates .3. and query .2, 4.", candidates=ROWS[0]),
    bad(NNLS, "takes pool and query, or gram and products, not", gram=GRAM),
    bad(NNLS_OF_GRAM, "products has dim 4, gram has dim 6", products=QUERY),
    bad(NNLS_OF_GRAM, "square must have shape .2., got .3.", square=torch.ones(3)),
]

# A ValueError of the operators alone. They want a batch, and look at storages.
WRONG_FOR_OPERATORS = [
    bad(FW, "pool needs 192 bytes of .* has 188", pool=shrunk(POOL, 188)),
    bad(FW, "pool_sizes needs 16 bytes", pool_sizes=shrunk(SIZES, 8)),
    bad(FW, "query must have 2 dimensions, got 1", query=QUERY[0]),
    bad(SIFT, "query must have 2 or 3 dimensions, got 1", query=QUERY[0]),
]

OVERFLOW = ".*finite but their inner products or weights overflow"


def overflowing(form: Form) -> Bad:
    tensors = {
        name: value.double() * HUGE
        for name, value in form[1].items()
        if name in ("pool", "query", "current")
    }
    return bad(form, OVERFLOW, **tensors)


# What is wrong with the values of a tensor, which on CUDA shows in the outputs instead.
WRONG_CONTENTS = [
    *spoiled(torch.float32, lambda t: poisoned(t, 1), r"(\[1\])? has NaN"),
    *spoiled(torch.int64, lambda t: poisoned(t, 0, value=-7), ".* -7"),
    *spoiled(torch.int64, lambda t: poisoned(t, 0, value=2**40), ".* 1099"),
    *map(overflowing, (FW, KNN, SIFT, LMO, SIMPLEX, NNLS)),
    bad(FW, "pool has NaN .* in row 3 for query 1$", pool=poisoned(POOL, 1, 3, 2)),
    bad(
        FW,
        "pool has NaN or infinity in row 5 for query 0",
        pool=poisoned(POOL, 0, 5, 0, value=INF),
        query=torch.zeros(B, D),
    ),
    bad(
        FW,
        "query.1. has NaN or infinity",
        query=poisoned(QUERY, 1, 0),
        pool_sizes=torch.tensor([6, 0]),
    ),
    bad(FW, OVERFLOW, pool=POOL * 1e20, query=QUERY * 1e20),  # the gap's float32
    bad(
        FW_OF_ROWS,
        "pool has NaN or infinity in row 3 for query 1",
        pool=poisoned(POOL[0], 3, 1),
    ),
    bad(
        FW_OF_ROWS,
        "candidates has -1 at position 0 .*; -1 is absent at the end alone",
        candidates=poisoned(ROWS, 1, 0, value=-1),
    ),
    bad(
        FW_OF_ROWS,
        "candidates has -1 at position 1 .*; without pool_sizes, -1 at the end is absent",
        candidates=poisoned(ROWS, 0, 1, value=-1),
        pool_sizes=torch.tensor([2, 2]),
    ),
    bad(
        FW_OF_ROWS,
        "candidates has 6 at position 1 for query 0, pool has 6 rows$",
        candidates=poisoned(ROWS, 0, 1, value=6),
    ),
    bad(KNN, "n_select is 5, the pool of query 1", n_select=5),
    bad(LMO, "pool_sizes.1. is 0, ", pool_sizes=torch.tensor([6, 0])),
    bad(
        INTEGERIZE,
        "weights.0. has a sum that float64 does not hold",
        weights=torch.full((B, K), 1e308, dtype=torch.float64),
        n_select=2**31 - 1,
    ),
]
