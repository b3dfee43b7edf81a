"""The operators as torch ops: schemas, fake kernels, compilation."""

from collections.abc import Callable

import pytest
import torch

import hullft_ops
from problems import ON_VALUES, make_problem

OPS = torch.ops.hullft_ops


def selection_samples() -> dict[
    str, tuple[object, tuple[object, ...], dict[str, object]]
]:
    pool, query = make_problem(0, 2, 12, 8, torch.float32)
    sizes = torch.tensor([12, 5])
    weights = torch.full((2, 12), 1 / 12)
    candidates = torch.arange(12).repeat(2, 1)
    return {
        "fw_select": (OPS.fw_select.default, (pool, query, 5), {}),
        "fw_select ragged": (
            OPS.fw_select.default,
            (pool.double(), query.double(), 5),
            {"variant": "away", "pool_sizes": sizes},
        ),
        "fw_select shared": (
            OPS.fw_select.default,
            (pool[0].half(), query.half(), 5),
            {},
        ),
        "fw_select_indexed": (
            OPS.fw_select_indexed.default,
            (pool[0], candidates, query, 5),
            {"pool_sizes": sizes},
        ),
        "knn_select": (OPS.knn_select.default, (pool, query, 5), {"pool_sizes": sizes}),
        "sift_select": (
            OPS.sift_select.default,
            (pool, query, 5),
            {"pool_sizes": sizes},
        ),
        "sift_select targets": (
            OPS.sift_select.default,
            (pool[0].double(), torch.stack([query, -query], dim=1).double(), 5, 0.2),
            {},
        ),
        "sift_select_indexed": (
            OPS.sift_select_indexed.default,
            (pool[0], candidates, query, 5),
            {"pool_sizes": sizes},
        ),
        "integerize": (
            OPS.integerize.default,
            (pool, query, weights, 5),
            {"support_sizes": sizes},
        ),
    }


@pytest.mark.parametrize("sample", selection_samples())
def test_opcheck(sample: str) -> None:
    op, args, kwargs = selection_samples()[sample]
    torch.library.opcheck(op, args, kwargs)


@pytest.mark.parametrize("sample", selection_samples())
def test_outputs_have_no_gradient(sample: str) -> None:
    op, args, kwargs = selection_samples()[sample]
    wanting = tuple(
        arg.clone().requires_grad_()
        if isinstance(arg, torch.Tensor) and arg.is_floating_point()
        else arg
        for arg in args
    )
    outputs = op(*wanting, **kwargs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    assert not any(output.requires_grad for output in outputs)
    torch.library.opcheck(op, wanting, kwargs)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_backward_pass_through_a_selection_fails(compiled: bool) -> None:
    torch.compiler.reset()
    pool, query = make_problem(1, 2, 6, 4, torch.float32)
    query.requires_grad_()

    def residual(pool: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
        return hullft_ops.fw_select(pool, query, 3).residual.sum()

    call = (
        torch.compile(residual, fullgraph=True, backend="aot_eager")
        if compiled
        else residual
    )
    with pytest.raises(RuntimeError, match="does not require grad"):
        call(pool, query).backward()


def functions() -> dict[str, Callable[[torch.Tensor, torch.Tensor], object]]:
    return {
        "fw_select": lambda pool, query: hullft_ops.fw_select(
            pool, query, 5, variant="pairwise"
        ),
        "multiset": lambda pool, query: hullft_ops.fw_select(pool, query, 5).multiset(),
        "fw_select_indexed": lambda pool, query: hullft_ops.fw_select_indexed(
            pool[0], torch.arange(8).expand(query.shape[0], -1), query, 5
        ),
        "knn_select": lambda pool, query: hullft_ops.knn_select(pool, query, 5),
        "sift_select": lambda pool, query: hullft_ops.sift_select(
            pool, query, 5, noise=0.2
        ),
        "sift multiset": lambda pool, query: hullft_ops.sift_select(
            pool, query, 5
        ).multiset(),
        "sift_select_indexed": lambda pool, query: hullft_ops.sift_select_indexed(
            pool[0], torch.arange(8).expand(query.shape[0], -1), query, 5
        ),
        "integerize": lambda pool, query: hullft_ops.integerize(
            pool, query, torch.ones(pool.shape[:2]), 5
        ),
    }


@pytest.mark.parametrize("name", functions())
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_equals_eager(name: str, dynamic: bool) -> None:
    torch.compiler.reset()
    function = functions()[name]
    compiled = torch.compile(
        function, fullgraph=True, dynamic=dynamic, backend="aot_eager"
    )
    for batch, candidates in [(2, 12), (3, 15)]:
        pool, query = make_problem(batch, batch, candidates, 8, torch.float32)
        got, wanted = compiled(pool, query), function(pool, query)
        got, wanted = [x if isinstance(x, tuple) else (x,) for x in (got, wanted)]
        assert all(torch.equal(x, y) for x, y in zip(got, wanted, strict=True))


@pytest.mark.cpu_only(ON_VALUES)
def test_compiled_call_reports_bad_values() -> None:
    torch.compiler.reset()
    pool, query = make_problem(1, 2, 6, 4, torch.float32)
    compiled = torch.compile(
        lambda p, q: hullft_ops.fw_select(p, q, 3).counts,
        fullgraph=True,
        backend="aot_eager",
    )
    with pytest.raises(
        ValueError, match="fw_select: pool has NaN or infinity in row 0"
    ):
        compiled(pool * float("nan"), query)


@pytest.mark.parametrize("device", ["cuda", "meta"])
def test_fake_tensors_get_shapes_and_checks(device: str) -> None:
    with torch._subclasses.FakeTensorMode():
        pool = torch.empty(3, 20, 8, device=device)
        query = torch.empty(3, 8, device=device)
        sel = hullft_ops.fw_select(pool, query, 5)
        assert sel.indices.shape == sel.weights.shape == sel.counts.shape == (3, 5)
        assert sel.gap.shape == sel.num_iter.shape == (3,)
        assert {t.device.type for t in sel} == {device}
        with pytest.raises(ValueError, match="query has dim 7, pool has dim 8"):
            hullft_ops.fw_select(pool, torch.empty(3, 7, device=device), 5)
        with pytest.raises(ValueError, match="query is on cpu, pool is on"):
            hullft_ops.fw_select(pool, torch.empty(3, 8, device="cpu"), 5)


def calls_with_one_meta_tensor() -> dict[str, tuple[Callable[[], object], str]]:
    pool, query = torch.randn(1, 4, 3), torch.randn(1, 3)
    sizes, weights = torch.tensor([4], device="meta"), torch.rand(1, 4, device="meta")
    rows = torch.arange(4, device="meta").repeat(1, 1)
    there = query.to("meta")
    return {
        "fw_select": (lambda: OPS.fw_select(pool, there, 2), "query is on meta, pool"),
        "fw_select_indexed": (
            lambda: OPS.fw_select_indexed(pool[0], rows, query, 2),
            "candidates is on meta, embeddings",
        ),
        "knn_select": (
            lambda: OPS.knn_select(pool, query, 2, pool_sizes=sizes),
            "pool_sizes is on meta, pool",
        ),
        "sift_select": (
            lambda: OPS.sift_select(pool, there, 2),
            "query is on meta, pool",
        ),
        "sift_select_indexed": (
            lambda: OPS.sift_select_indexed(pool[0], rows, query, 2),
            "candidates is on meta, embeddings",
        ),
        "integerize": (
            lambda: OPS.integerize(pool, query, weights, 2),
            "weights is on meta, support",
        ),
        "fw_lmo": (lambda: OPS.fw_lmo(pool, query, there), "current is on meta, pool"),
        "grad_accumulate_": (
            lambda: OPS.grad_accumulate_([query], [there]),
            r"grads\[0\] is on meta, the first tensor",
        ),
    }


@pytest.mark.cpu_only("where a test's tensors are is where they stay with --device")
@pytest.mark.parametrize("name", calls_with_one_meta_tensor())
def test_one_meta_tensor_among_others(name: str) -> None:
    call, message = calls_with_one_meta_tensor()[name]
    with pytest.raises(ValueError, match=f"^{name}: {message} is on cpu$"):
        call()


def test_what_is_written_counts_its_versions() -> None:
    """Autograd then notices a value that was saved before."""
    lists = {
        name: [torch.zeros(2), torch.ones(3, requires_grad=True)]
        for name in ("params", "grads", "exp_avgs", "exp_avg_sqs")
    }
    steps = [torch.tensor(0.0), torch.tensor(0.0)]
    options = {
        "lr": 1.0,
        "beta1": 0.9,
        "beta2": 0.999,
        "eps": 1e-8,
        "weight_decay": 0.0,
    }
    with torch.no_grad():
        OPS.adam_replay_(
            *lists.values(),
            steps,
            repeats=3,
            **options,
            decoupled=False,
            maximize=False,
        )
        OPS.grad_accumulate_(lists["exp_avgs"], lists["grads"])
    versions = {name: [tensor._version for tensor in lists[name]] for name in lists}
    assert versions == {
        "params": [1, 1], "grads": [0, 0], "exp_avgs": [2, 2], "exp_avg_sqs": [1, 1]
    }  # fmt: skip
    assert [step._version for step in steps] == [1, 1]
