"""fw_lmo on the CPU: against the definition, in a loop of one's own, and on bad input."""

import re

import pytest
import torch

import hullft_ops
from hullft_ops import reference
from hullft_ops.lmo import LmoStep, fw_lmo
from problems import DTYPES, ON_VALUES, make_problem


def vertices(pool: torch.Tensor, index: int) -> torch.Tensor:
    return pool[:, index].contiguous()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("candidates", "dim"), [(1, 1), (3, 5), (17, 9), (200, 48)])
@pytest.mark.usefixtures("simd_level")
def test_equals_reference(dtype: torch.dtype, candidates: int, dim: int) -> None:
    pool, query = make_problem(0, 3, candidates, dim, dtype)
    current = vertices(pool, candidates - 1)
    step = fw_lmo(pool, query, current)
    real = torch.float64 if dtype == torch.float64 else torch.float32
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    for b in range(3):
        expected = reference.fw_lmo(pool[b], query[b], current[b])
        assert step.vertex[b].item() == expected.vertex
        assert step.correlation.dtype == step.gamma.dtype == step.gap.dtype == real
        assert step.correlation[b].item() == pytest.approx(
            expected.correlation, abs=tolerance
        )
        assert step.gamma[b].item() == pytest.approx(expected.gamma, abs=tolerance)
        assert step.gap[b].item() == pytest.approx(expected.gap, abs=tolerance)


@pytest.mark.usefixtures("simd_level")
def test_own_loop_gives_vanilla_frank_wolfe() -> None:
    pool, query = make_problem(1, 1, 40, 16)
    pool, query = pool[0], query[0]
    current = pool[(pool @ query).argmax()].clone()
    n_iter = 12
    for _ in range(n_iter):
        step = fw_lmo(pool, query, current)
        current += step.gamma * (pool[step.vertex] - current)
    selection = hullft_ops.fw_select(pool, query, 40, max_iter=n_iter)
    assert selection.num_iter.item() == n_iter
    assert (query - current).norm().item() == pytest.approx(
        selection.residual.item(), abs=1e-12
    )
    assert fw_lmo(pool, query, current).gap.item() == pytest.approx(
        selection.gap.item(), abs=1e-12
    )


@pytest.mark.usefixtures("simd_level")
def test_ties_go_to_the_lowest_row() -> None:
    pool = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    step = fw_lmo(pool, torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
    assert step.vertex.item() == 1


def test_no_step_where_row_and_current_coincide() -> None:
    pool, query = torch.eye(2), torch.tensor([3.0, 0.0])
    step = fw_lmo(pool, query, pool[0])
    assert step == LmoStep(*(torch.tensor(v) for v in (0, 2.0, 0.0, 0.0)))


@pytest.mark.parametrize(("length", "gamma"), [(0.99e-6, 0.0), (1.01e-6, 2 / 3)])
@pytest.mark.parametrize("norm", [1.0, 2.0**-40, 2.0**40])
def test_a_way_shorter_than_the_documented_one_is_none(
    length: float, gamma: float, norm: float
) -> None:
    pool = torch.tensor([[1.0, length], [0.0, 0.0]], dtype=torch.float64)
    current = torch.tensor([1.0, 0.0], dtype=torch.float64)
    query = torch.tensor([1.0, length * 2 / 3], dtype=torch.float64)
    step = fw_lmo(norm * pool, norm * query, norm * current)
    assert step.vertex.item() == 0
    assert step.gamma.item() == pytest.approx(gamma, abs=1e-6)


@pytest.mark.usefixtures("simd_level")
def test_shared_ragged_and_strided_pools() -> None:
    pool, query = make_problem(2, 4, 30, 8)
    current = vertices(pool, 3)
    sizes = torch.tensor([30, 4, 1, 17])
    ragged = fw_lmo(pool, query, current, pool_sizes=sizes)
    shared = fw_lmo(pool[0], query, current)
    strided = fw_lmo(pool.mT.contiguous().mT, query, current)
    whole = fw_lmo(pool, query, current)
    for b in range(4):
        n = int(sizes[b])
        assert (
            ragged.vertex[b]
            == reference.fw_lmo(pool[b, :n], query[b], current[b]).vertex
        )
        assert (
            shared.vertex[b] == reference.fw_lmo(pool[0], query[b], current[b]).vertex
        )
    for got, wanted in zip(strided, whole, strict=True):
        assert torch.equal(got, wanted)


def test_empty_batch() -> None:
    step = fw_lmo(torch.eye(3), torch.zeros(0, 3), torch.zeros(0, 3))
    assert [tuple(t.shape) for t in step] == [(0,)] * 4


POOL, QUERY, CURRENT = (
    torch.eye(4).repeat(2, 1, 1),
    torch.ones(2, 4),
    torch.full((2, 4), 0.25),
)


def poisoned(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.clone()
    tensor.view(-1)[-1] = float("nan")
    return tensor


@pytest.mark.refusal("public")
@pytest.mark.parametrize(
    ("pool", "query", "current", "error", "message"),
    [
        (
            POOL,
            QUERY,
            CURRENT.double(),
            TypeError,
            "current is torch.float64, query is torch.flo",
        ),
        (
            POOL,
            QUERY,
            CURRENT[0],
            ValueError,
            "current must have query's shape [2, 4], got [4]",
        ),
        (
            POOL,
            QUERY,
            CURRENT.to("meta"),
            ValueError,
            "current is on meta, query is on cpu",
        ),
        (POOL, QUERY[:, :3], CURRENT, ValueError, "query has dim 3, pool has dim 4"),
        (POOL[:, :0], QUERY, CURRENT, ValueError, "pool is empty"),
        (POOL, QUERY, [1.0], TypeError, "current must be a torch.Tensor, got list"),
    ],
)
def test_bad_input(
    pool: torch.Tensor,
    query: torch.Tensor,
    current: torch.Tensor,
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=f"fw_lmo: .*{re.escape(message)}"):
        fw_lmo(pool, query, current)


@pytest.mark.cpu_only(ON_VALUES)
@pytest.mark.parametrize(
    ("pool", "query", "current", "message"),
    [
        (POOL, QUERY, poisoned(CURRENT), "current[1] has NaN or infinity"),
        (POOL, poisoned(QUERY), CURRENT, "query[1] has NaN or infinity"),
        (
            poisoned(POOL),
            QUERY,
            CURRENT,
            "pool has NaN or infinity in row 3 for query 1",
        ),
        (
            POOL * 1e20,
            QUERY * 1e20,
            CURRENT,
            "pool and query[0] are finite but their inner",
        ),
    ],
)
def test_bad_values(
    pool: torch.Tensor, query: torch.Tensor, current: torch.Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=f"fw_lmo: {re.escape(message)}"):
        fw_lmo(pool, query, current)


@pytest.mark.parametrize("shared", [False, True])
def test_opcheck(shared: bool) -> None:
    pool, query = make_problem(3, 2, 12, 8, torch.float32)
    sizes = torch.tensor([12, 5])
    args = (pool[0] if shared else pool, query, vertices(pool, 1), sizes)
    torch.library.opcheck(torch.ops.hullft_ops.fw_lmo.default, args)


def test_compiles_to_one_graph() -> None:
    pool, query = make_problem(4, 2, 12, 8)
    compiled = torch.compile(fw_lmo, fullgraph=True, backend="aot_eager")
    current = vertices(pool, 1)
    for got, wanted in zip(
        compiled(pool, query, current), fw_lmo(pool, query, current), strict=True
    ):
        assert torch.equal(got, wanted)
