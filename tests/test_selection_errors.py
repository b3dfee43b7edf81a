"""Bad input to the selection operators: errors name the argument, what was wanted, what came."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import hullft_ops
from problems import ON_VALUES

B, K, D = 2, 6, 4
POOL = torch.eye(K, D).repeat(B, 1, 1) + 0.1
QUERY = torch.ones(B, D)
NAN, INF = float("nan"), float("inf")


def call_fw(
    pool: Any = None, query: Any = None, n_select: Any = 3, **options: Any
) -> object:
    pool, query = (POOL if pool is None else pool), (QUERY if query is None else query)
    return hullft_ops.fw_select(pool, query, n_select, **options)


def poisoned(
    tensor: torch.Tensor, index: tuple[int, ...], value: float
) -> torch.Tensor:
    tensor = tensor.clone()
    tensor[index] = value
    return tensor


TYPE_ERRORS: dict[str, tuple[Callable[[], object], str]] = {
    "pool list": (
        lambda: call_fw([[1.0]]),
        "fw_select: pool must be a torch.Tensor, got list",
    ),
    "NumPy": (
        lambda: call_fw(POOL.numpy()),
        r"^fw_select: pool must be a torch.Tensor, got ndarray; torch.from_numpy\(array\) makes "
        "one that shares its memory$",
    ),
    "pool int": (
        lambda: call_fw(POOL.int()),
        "pool must be float32, .* got torch.int32",
    ),
    "query dtype": (
        lambda: call_fw(query=QUERY.double()),
        "query is torch.float64, pool is torch.float32",
    ),
    "sparse": (lambda: call_fw(POOL.to_sparse()), "pool must be dense, got layout"),
    "n float": (lambda: call_fw(n_select=3.0), "n_select must be an int, got float"),
    "n bool": (lambda: call_fw(n_select=True), "n_select must be an int, got bool"),
    "tol str": (lambda: call_fw(tol="1"), "tol must be a number, got str"),
    "variant type": (
        lambda: call_fw(variant=["away"]),
        "variant must be a str, got list",
    ),
    "sizes dtype": (
        lambda: call_fw(pool_sizes=torch.ones(B)),
        "pool_sizes must be int64, got torch.float32",
    ),
    "weights dtype": (
        lambda: hullft_ops.integerize(POOL, QUERY, torch.ones(B, K).half(), 3),
        "weights must be float32 or float64, got torch.float16",
    ),
    "candidates dtype": (
        lambda: hullft_ops.fw_select_indexed(POOL[0], torch.ones(B, 2).int(), QUERY, 3),
        "candidates must be int64, got torch.int32",
    ),
}

VALUE_ERRORS: dict[str, tuple[Callable[[], object], str]] = {
    "dim": (
        lambda: call_fw(query=torch.ones(B, 5)),
        "fw_select: query has dim 5, pool has dim 4",
    ),
    "batch": (
        lambda: call_fw(query=torch.ones(3, D)),
        "pool has a batch of 2, query a batch of 3",
    ),
    "batched pool, one query": (
        lambda: call_fw(query=torch.ones(D)),
        r"pool has a batch of 2, query has shape \[4\]",
    ),
    "pool rank": (lambda: call_fw(torch.ones(D)), r"pool must have shape .* got \[4\]"),
    "query rank": (lambda: call_fw(query=torch.ones(1, B, D)), "query must have shape"),
    "empty pool": (
        lambda: call_fw(torch.ones(B, 0, D)),
        r"pool is empty, got shape \[2, 0, 4\]",
    ),
    "no dim": (
        lambda: call_fw(torch.ones(B, K, 0), torch.ones(B, 0)),
        "pool has dim 0",
    ),
    "n zero": (
        lambda: call_fw(n_select=0),
        r"n_select must be in 1\.\.2147483647, got 0",
    ),
    "n negative": (lambda: call_fw(n_select=-3), "n_select must be in .* got -3"),
    "n huge": (
        lambda: call_fw(n_select=2**31),
        "n_select must be in .* got 2147483648",
    ),
    "n beyond int64": (
        lambda: call_fw(n_select=2**70),
        "n_select must be in .* got 1180591620",
    ),
    "max_iter": (lambda: call_fw(max_iter=-1), r"max_iter must be in 0\.\."),
    "tol negative": (lambda: call_fw(tol=-1e-3), "tol must be >= 0, got -0.001"),
    "tol nan": (lambda: call_fw(tol=NAN), "tol must be >= 0, got nan"),
    "gap_tol": (lambda: call_fw(gap_tol=-1.0), "gap_tol must be >= 0, got -1.0"),
    "swap_passes": (lambda: call_fw(swap_passes=-1), r"swap_passes must be in 0\.\."),
    "tol huge": (
        lambda: call_fw(tol=10**400),
        "tol must be a float64, got an int of 1329 bits",
    ),
    "variant": (
        lambda: call_fw(variant="fast"),
        "variant must be one of vanilla, away, pairwise, got 'fast'",
    ),
    "sizes shape": (
        lambda: call_fw(pool_sizes=torch.tensor([1])),
        r"pool_sizes must have shape \[2\], got \[1\]",
    ),
    "sizes without batch": (
        lambda: call_fw(POOL[0], QUERY[0], pool_sizes=torch.tensor([1])),
        "pool_sizes needs a batch",
    ),
    "device": (
        lambda: call_fw(query=QUERY.to("meta")),
        "query is on meta, pool is on cpu",
    ),
    "candidates shape": (
        lambda: hullft_ops.fw_select_indexed(
            POOL[0], torch.ones(3, 2).long(), QUERY, 3
        ),
        r"candidates \[3, 2\] and query \[2, 4\]",
    ),
    "candidates empty": (
        lambda: hullft_ops.fw_select_indexed(
            POOL[0], torch.ones(B, 0).long(), QUERY, 3
        ),
        "candidates is empty",
    ),
    "embeddings rank": (
        lambda: hullft_ops.fw_select_indexed(POOL, torch.ones(B, 2).long(), QUERY, 3),
        r"embeddings must have shape \[M, d\]",
    ),
    "weights shape": (
        lambda: hullft_ops.integerize(POOL, QUERY, torch.ones(B, 3), 3),
        r"integerize: weights must have shape \[2, 6\], got \[2, 3\]",
    ),
}

# What is wrong with the values of a tensor, which on CUDA shows in the outputs instead.
DATA_ERRORS: dict[str, tuple[Callable[[], object], str]] = {
    "sizes zero": (
        lambda: call_fw(pool_sizes=torch.tensor([1, 0])),
        r"pool_sizes\[1\] is 0, must be in 1\.\.6",
    ),
    "sizes beyond": (
        lambda: call_fw(pool_sizes=torch.tensor([7, 1])),
        r"pool_sizes\[0\] is 7, must be in 1\.\.6",
    ),
    "sizes huge": (
        lambda: call_fw(pool_sizes=torch.tensor([2**40, 1])),
        r"pool_sizes\[0\] is 1099511627776, must be in 1\.\.6",
    ),
    "nan pool": (
        lambda: call_fw(poisoned(POOL, (1, 4, 2), NAN)),
        "fw_select: pool has NaN or infinity in row 4 for query 1",
    ),
    "inf pool": (
        lambda: call_fw(poisoned(POOL, (0, 5, 0), -INF)),
        "pool has NaN .* row 5",
    ),
    "nan query": (
        lambda: call_fw(query=poisoned(QUERY, (1, 0), NAN)),
        r"query\[1\] has NaN or infinity",
    ),
    "inf against zero": (
        lambda: call_fw(poisoned(POOL, (0, 5, 0), INF), torch.zeros(B, D)),
        "pool has NaN or infinity in row 5 for query 0",
    ),
    "overflow": (
        lambda: call_fw(POOL.double() * 1e200, QUERY.double() * 1e200),
        "finite but their inner products overflow",
    ),
    "overflow in the gram matrix": (
        lambda: call_fw(POOL.double() * 1e200, QUERY.double()),
        "finite but their inner products overflow",
    ),
    "overflow of a row that is not in the support": (
        lambda: hullft_ops.fw_select(
            torch.tensor(
                [[1e150, 0.0], [-1e150, 1e149], [1e160, -1e160]], dtype=torch.float64
            ),
            torch.tensor([1e-150, 1e-150], dtype=torch.float64),
            3,
        ),
        "finite but their inner products overflow",
    ),
    "nan embeddings": (
        lambda: hullft_ops.fw_select_indexed(
            poisoned(POOL[0], (3, 1), NAN), torch.tensor([[0, 1], [2, 3]]), QUERY, 3
        ),
        "embeddings has NaN or infinity in row 1 for query 1",
    ),
    "nan support": (
        lambda: hullft_ops.integerize(
            poisoned(POOL, (0, 2, 1), NAN), QUERY, torch.ones(B, K), 3
        ),
        "support has NaN or infinity in row 2 for query 0",
    ),
    "gap overflows float32": (
        lambda: call_fw(POOL * 1e20, QUERY * 1e20),
        "finite but their inner products overflow",
    ),
    "knn gap overflows float32": (
        lambda: hullft_ops.knn_select(POOL * 1e20, QUERY * 1e20, 3),
        "finite but their inner products overflow",
    ),
    "sum of weights overflows": (
        lambda: hullft_ops.integerize(
            POOL, QUERY, torch.ones(B, K).double() * 1e308, 2**31 - 1
        ),
        r"integerize: weights\[0\] has a sum that float64 does not hold",
    ),
    "nan knn": (
        lambda: hullft_ops.knn_select(poisoned(POOL, (0, 2, 1), NAN), QUERY, 3),
        "knn_select: pool has NaN or infinity in row 2 for query 0",
    ),
}


@pytest.mark.refusal("public")
@pytest.mark.parametrize("case", TYPE_ERRORS)
def test_type_error(case: str) -> None:
    call, message = TYPE_ERRORS[case]
    with pytest.raises(TypeError, match=message):
        call()


@pytest.mark.refusal("public")
@pytest.mark.parametrize("case", VALUE_ERRORS)
def test_value_error(case: str) -> None:
    call, message = VALUE_ERRORS[case]
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.cpu_only(ON_VALUES)
@pytest.mark.parametrize("case", DATA_ERRORS)
def test_data_error(case: str) -> None:
    call, message = DATA_ERRORS[case]
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.refusal("operator")
def test_storage_that_was_freed_or_shrunk() -> None:
    for size in (0, POOL.nbytes - 4):
        pool = POOL.clone()
        pool.untyped_storage().resize_(size)
        with pytest.raises(
            ValueError, match=f"pool needs 192 bytes of storage, it has {size}"
        ):
            call_fw(pool)
    sizes = torch.tensor([1, 2])
    sizes.untyped_storage().resize_(8)
    with pytest.raises(
        ValueError, match="pool_sizes needs 16 bytes of storage, it has 8"
    ):
        call_fw(pool_sizes=sizes)


RAW = torch.ops.hullft_ops
RAW_ERRORS: dict[str, tuple[Callable[[], object], str]] = {
    "query rank": (
        lambda: RAW.fw_select(POOL, QUERY[0], 3),
        "query must have 2 dimensions",
    ),
    "pool rank": (
        lambda: RAW.fw_select(POOL[0, 0], QUERY, 3),
        "pool must have 2 or 3 dimensions",
    ),
    "dim": (
        lambda: RAW.fw_select(POOL, QUERY[:, :2], 3),
        "query has dim 2, pool has dim 4",
    ),
    "batch": (
        lambda: RAW.fw_select(POOL, QUERY[:1], 3),
        "query has batch 1, pool has batch 2",
    ),
    "dtype": (
        lambda: RAW.fw_select(POOL, QUERY.half(), 3),
        "query is float16, pool is float32",
    ),
    "other dtypes": (
        lambda: RAW.fw_select(POOL, QUERY.to(torch.uint8), 3),
        "query is uint8, pool is float32",
    ),
    "sizes dtype": (
        lambda: RAW.fw_select(POOL, QUERY, 3, pool_sizes=torch.ones(B).int()),
        "pool_sizes must be int64, got int32",
    ),
    "integer": (
        lambda: RAW.fw_select(POOL.long(), QUERY.long(), 3),
        "pool must be float32",
    ),
    "empty": (lambda: RAW.fw_select(POOL[:, :0], QUERY, 3), "pool is empty"),
    "n": (lambda: RAW.fw_select(POOL, QUERY, 0), "n_select must be in 1"),
    "variant": (lambda: RAW.fw_select(POOL, QUERY, 3, variant=""), "variant must be"),
    "sizes": (
        lambda: RAW.fw_select(POOL, QUERY, 3, pool_sizes=torch.tensor([[1, 1]])),
        "pool_sizes must have 1 dimensions",
    ),
    "candidates": (
        lambda: RAW.fw_select_indexed(POOL[0], torch.zeros(1, 2).long(), QUERY, 3),
        "candidates has batch 1, query has batch 2",
    ),
    "knn": (lambda: RAW.knn_select(POOL, QUERY, 7), "n_select is 7"),
    "weights": (
        lambda: RAW.integerize(POOL, QUERY, torch.ones(B, 2), 3),
        r"weights has shape \[2, 2\], wanted \[2, 6\]",
    ),
}


@pytest.mark.refusal("operator")
@pytest.mark.parametrize("case", RAW_ERRORS)
def test_operators_called_directly_check_too(case: str) -> None:
    call, message = RAW_ERRORS[case]
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.cpu_only("no nested tensor is made on a device that is not there")
def test_a_nested_pool() -> None:
    nested = torch.nested.nested_tensor([POOL, POOL[:2]])
    with pytest.raises(TypeError, match="pool must be dense, got a nested tensor"):
        call_fw(nested)
