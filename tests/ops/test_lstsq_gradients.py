"""The gradients of simplex_lstsq and nnls: both modes, any order, compiled, under torch.func."""

from collections.abc import Callable
from functools import partial

import mpmath
import numpy as np
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

import hullft_ops
from lstsq_problems import adjoints, make
from problems import make_problem

SOLVERS = [hullft_ops.simplex_lstsq, hullft_ops.nnls]
SMOOTH = [
    "plain",
    "one long row",
    "rows of every length",
    "far from 0",
    "zero query",
    "query in hull",
]
on_the_cpu = pytest.mark.cpu_only("gram= runs on the CPU for now")
every_solver = pytest.mark.parametrize("solver", SOLVERS)
every_form = pytest.mark.parametrize(
    "form", ["rows", pytest.param("gram", marks=on_the_cpu)]
)
Outputs = Callable[..., tuple[torch.Tensor, ...]]


def weights_and_residual(solver: Callable, form: str) -> Outputs:
    """By pool and query, whose inner products are taken for the form "gram"."""

    def outputs(pool: torch.Tensor, query: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if form == "rows":
            return solver(pool, query)[:2]

        products = (pool @ query[..., None])[..., 0]
        square = query.square().sum(-1)
        return solver(gram=pool @ pool.mT, products=products, square=square)[:2]

    return outputs


@every_solver
@every_form
@pytest.mark.parametrize("shape", ["own pools", "shared", "single"])
def test_derivatives_in_both_modes_and_of_second_order(
    solver: Callable, form: str, shape: str
) -> None:
    pool, query = make(4, 2, 4, 5, "plain")
    pool = pool if shape == "own pools" else pool[0].clone()
    query = query[0].clone() if shape == "single" else query
    inputs = pool.requires_grad_(), query.requires_grad_()
    outputs = weights_and_residual(solver, form)

    assert gradcheck(
        outputs,
        inputs,
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
    )
    assert gradgradcheck(outputs, inputs, check_fwd_over_rev=True)


TRANSFORMS = {
    "vmap of grad": lambda f: torch.vmap(torch.func.grad(f)),
    "grad of vmap": lambda f: torch.func.grad(lambda *x: torch.vmap(f)(*x).sum()),
    "jacfwd": torch.func.jacfwd,
    "hessian": torch.func.hessian,
}


@every_solver
@every_form
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms_of_torch_func_compiled_or_not(
    solver: Callable, form: str, transform: str
) -> None:
    pool, query = make(11, 2, 3, 4, "plain")
    outputs = weights_and_residual(solver, form)

    def loss(pool: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
        weights, residual = outputs(pool, query)
        return (weights * torch.arange(3)).square().sum() + residual.sum()

    function = TRANSFORMS[transform](loss)
    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    values = function(pool, query)

    torch.testing.assert_close(compiled(pool, query), values, rtol=0, atol=1e-13)

    differentiate = getattr(
        torch.autograd.functional, "hessian" if transform == "hessian" else "jacobian"
    )
    expected = differentiate(lambda pool: loss(pool, query), pool)

    torch.testing.assert_close(values, expected, rtol=1e-9, atol=1e-11)


@every_solver
@pytest.mark.parametrize(
    ("dtype", "scale", "tolerance"),
    [
        (torch.float32, 1e20, 1e-5),
        (torch.float32, 1.0, 1e-5),
        (torch.float32, 1e-22, 1e-5),
        (torch.bfloat16, 1.0, 0.1),
    ],
)
def test_narrow_dtypes_of_every_size(
    solver: Callable, dtype: torch.dtype, scale: float, tolerance: float
) -> None:
    """The residual's gradient keeps its size at every scale; the weights' goes as 1 / length."""
    pool, query = (t.to(dtype) for t in make(4, 3, 6, 8, "plain"))

    def gradients(output: int, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        inputs = [t.requires_grad_() for t in tensors]
        values = solver(*inputs)[output]
        seed = torch.arange(values.numel()).view_as(values).to(values)
        return torch.autograd.grad(values, inputs, seed)

    for output, power in ((0, 1), (1, 0)):
        exact = gradients(output, pool.double(), query.double())
        narrow = gradients(output, pool * scale, query * scale)

        for value, expected in zip(narrow, exact, strict=True):
            assert value.dtype == dtype

            error = value.double() * scale**power - expected

            assert error.norm() <= tolerance * expected.norm()


def best_weights(pool: np.ndarray, query: np.ndarray, on_simplex: bool) -> np.ndarray:
    """Where all rows have weight, of mpmath's numbers."""
    gram, products = pool @ pool.T, pool @ query
    if on_simplex:
        ones = np.ones_like(products)
        gram = np.block([[gram, ones[:, None]], [ones[None], 0 * ones[None, :1]]])
        products = np.append(products, 1)

    solution = mpmath.lu_solve(gram.tolist(), products.tolist())
    return np.array(list(solution))[: len(pool)]


@every_solver
@pytest.mark.parametrize("kind", SMOOTH)
@pytest.mark.parametrize("shape", [(6, 8), (20, 30), (30, 12)])
def test_as_exact_as_differences_of_60_digits(
    solver: Callable, kind: str, shape: tuple[int, int]
) -> None:
    """Along a direction that changes each row by a share of its length."""
    inputs = make(2, 1, *shape, kind)
    weights = solver(*(t.requires_grad_() for t in inputs)).weights
    generator = torch.Generator().manual_seed(0)
    seed, *changes = (
        torch.randn(t.shape, generator=generator, dtype=torch.float64)
        for t in (weights, *inputs)
    )
    for change, t in zip(changes, inputs, strict=True):
        size = t.detach().abs().amax(-1, keepdim=True)
        change *= size.where(size > 0, 1.0)

    gradients = torch.autograd.grad(weights, inputs, seed)
    terms = [(g * c).flatten() for g, c in zip(gradients, changes, strict=True)]
    support = weights[0] > 0
    rows = inputs[0][0], changes[0][0], seed[0], gradients[0][0]

    assert (rows[3][~support] == 0).all()

    if not support.any():  # of a query of 0, without the sum
        return

    with mpmath.workdps(60):
        exact = np.vectorize(mpmath.mpf, otypes=[object])
        x, dx, g = (exact(t.detach()[support].numpy()) for t in rows[:3])
        q, dq = exact(inputs[1][0].detach().numpy()), exact(changes[1][0].numpy())
        step = mpmath.mpf(10) ** -20
        ends = [
            g @ best_weights(x + h * dx, q + h * dq, solver is SOLVERS[0])
            for h in (step, -step)
        ]
        expected = float((ends[0] - ends[1]) / (2 * step))

    terms = torch.cat(terms)

    assert abs(terms.sum() - expected) <= 1e-8 * max(1, terms.abs().sum())


@every_solver
def test_single_and_ragged_problems(solver: Callable) -> None:
    """As parts of a batch."""
    pool, query = make_problem(3, 3, 9, 12, spread=2.0)
    sizes = torch.tensor([9, 0, 5])
    ragged = pool.clone()
    ragged[1] = ragged[2, 5:] = float("nan")

    def of(pool: torch.Tensor, query: torch.Tensor, **options: object) -> list:
        inputs = [pool.clone().requires_grad_(), query.clone().requires_grad_()]
        solution = solver(*inputs, **options)
        loss = (solution.weights * torch.arange(pool.shape[-2])).sum()
        return list(torch.autograd.grad(loss + solution.residual.sum(), inputs))

    of_pool, of_query = of(ragged, query, pool_sizes=sizes)

    for b in (0, 2):
        size = int(sizes[b])
        alone = of(pool[b, :size], query[b])

        torch.testing.assert_close(alone[0], of_pool[b, :size])
        torch.testing.assert_close(alone[1], of_query[b])
        assert (of_pool[b, size:] == 0).all()

    assert (of_pool[1] == 0).all()
    torch.testing.assert_close(of_query[1], query[1] / query[1].norm())


def test_a_query_in_the_hull_has_finite_gradients() -> None:
    """Though the system of all rows is singular; of a residual of 0 they are 0."""
    pool, query = make(5, 4, 30, 3, "query in hull")
    pool.requires_grad_()
    solution = hullft_ops.simplex_lstsq(pool, query)
    (gradient,) = torch.autograd.grad(solution.weights.square().sum(), pool)

    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0

    gram = torch.ones(2, 2, dtype=torch.float64).requires_grad_()
    products = torch.ones(2, dtype=torch.float64).requires_grad_()
    solution = hullft_ops.simplex_lstsq(gram=gram, products=products, square=gram[0, 0])
    gradients = torch.autograd.grad(solution.residual, (gram, products))

    assert all((gradient == 0).all() for gradient in gradients)


@every_solver
def test_the_gap_has_no_gradient(solver: Callable) -> None:
    pool, query = make(4, 3, 6, 8, "plain")

    assert not any(output.requires_grad for output in solver(pool, query))

    with pytest.raises(NotImplementedError, match="the gap has no gradient"):
        torch.func.grad(lambda q: solver(pool, q).gap.sum())(query)

    solution = solver(pool.requires_grad_(), query)

    assert solution.weights.requires_grad
    assert solution.residual.requires_grad
    assert torch.vmap(solver)(pool, query).weights.requires_grad
    with pytest.raises(NotImplementedError, match="the gap has no gradient"):
        solution.gap.sum().backward()

    _, tangents = torch.func.jvp(
        lambda q: tuple(solver(pool, q))[:3], (query,), (query,)
    )
    assert (tangents[2] == 0).all()


def loss(solver: Callable, pool: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    solution = solver(pool, query)
    factors = torch.arange(pool.shape[-2], dtype=pool.dtype)
    return (solution.weights * factors).sum() + solution.residual.sum()


@every_solver
def test_compiled_gradients_are_those_of_eager_mode(solver: Callable) -> None:
    torch.compiler.reset()
    function = partial(loss, solver)
    compiled = torch.compile(
        function, fullgraph=True, dynamic=True, backend="aot_eager"
    )

    for batch, rows in [(2, 9), (3, 12)]:
        inputs = [t.requires_grad_() for t in make_problem(batch, batch, rows, 14)]
        expected = torch.autograd.grad(function(*inputs), inputs)
        gradients = torch.autograd.grad(compiled(*inputs), inputs)

        torch.testing.assert_close(gradients, expected, rtol=0, atol=0)


@every_solver
def test_checkpointed_gradients_are_those_of_eager_mode(solver: Callable) -> None:
    inputs = [t.requires_grad_() for t in make_problem(6, 2, 9, 14)]
    recomputed = checkpoint(partial(loss, solver), *inputs, use_reentrant=False)
    gradients = torch.autograd.grad(recomputed, inputs)

    assert_close = partial(torch.testing.assert_close, rtol=0, atol=0)
    assert_close(gradients, torch.autograd.grad(loss(solver, *inputs), inputs))


@every_solver
def test_one_pool_for_each_of_many_gradients(solver: Callable) -> None:
    pool, query = make_problem(6, 4, 9, 14, spread=2.0)
    gradient = torch.func.grad(partial(loss, solver))
    one_by_one = torch.func.vmap(gradient, (None, 0))(pool[0], query).sum(0)

    torch.testing.assert_close(
        one_by_one, gradient(pool[0], query), rtol=1e-9, atol=1e-12
    )


@every_solver
@pytest.mark.parametrize("kind", ["plain", "copies", "query in hull", "far from 0"])
@pytest.mark.parametrize(("rows", "dim"), [(9, 14), (30, 3)])
@pytest.mark.parametrize("is_shared", [False, True])
def test_the_adjoint_is_that_of_the_reference(
    solver: Callable, kind: str, rows: int, dim: int, is_shared: bool
) -> None:
    """Of the solution's support, and of rows that depend on one another."""
    pool, query = make(7, 5, rows, dim, kind)
    generator = torch.Generator().manual_seed(0)
    gradient = torch.randn(5, rows, generator=generator, dtype=torch.float64)
    dense = torch.rand(5, rows, generator=generator, dtype=torch.float64) - 0.3
    on_simplex = solver is hullft_ops.simplex_lstsq
    pool = pool[0] if is_shared else pool

    for weights in (solver(pool, query).weights, dense, dense * 0):
        for is_gram, of in ((False, pool), (True, pool @ pool.mT)):
            arguments = (of, weights, gradient, is_gram, on_simplex)
            expected = adjoints(*arguments)
            v = torch.ops.hullft_ops.lstsq_adjoint(*arguments)
            error = (v - expected).norm()

            assert error <= 1e-7 * expected.norm()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"weights": torch.ones(2, 4)}, r"weights must have shape \[2, 3\]"),
        ({"gradient": torch.ones(2, 3)}, "gradient must be float64"),
        ({"weights": torch.ones(3)}, "weights must have 2 dimensions"),
        ({"pool": torch.ones(3, 5).long()}, "pool must be float32"),
        ({"is_gram": True}, "gram must be square"),
    ],
)
def test_the_adjoint_checks_its_tensors(changed: dict, message: str) -> None:
    good = {
        "pool": torch.ones(3, 5),
        "weights": torch.ones(2, 3),
        "gradient": torch.ones(2, 3).double(),
        "is_gram": False,
        "on_simplex": True,
    }

    with pytest.raises(ValueError, match=f"^lstsq_adjoint: {message}"):
        torch.ops.hullft_ops.lstsq_adjoint(**good | changed)
