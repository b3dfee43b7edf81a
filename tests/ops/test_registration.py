"""The operators as torch ops: schemas, fake kernels, compilation, errors."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

import hullft_ops
from adam_problems import OPS, OPTIONS, make_tensors
from hullft_ops import _ops
from problems import ON_VALUES, make_problem

Arguments = dict[str, Any]


def samples() -> dict[str, tuple[str, Arguments]]:
    """Calls of each operator that returns tensors."""
    pool, query = make_problem(0, 2, 12, 8, torch.float32)
    pools = {"pool": pool, "query": query, "n_select": 5}
    wide = {"pool": pool.double(), "query": query.double(), "n_select": 5}
    targets = torch.stack([query, -query], dim=1)
    candidates = torch.arange(12).repeat(2, 1)
    of_rows = {**pools, "pool": pool[0], "candidates": candidates}
    integers = {
        "support": pool,
        "query": query,
        "weights": torch.full((2, 12), 1 / 12),
        "n_select": 5,
    }
    current = pool[:, 1].contiguous()
    step = {"pool": pool, "query": query, "current": current}
    least = {"pool": pool, "query": query, "gap_tol": 0.0, "max_iter": 36}
    gram = pool.double() @ pool.double().mT
    of_gram = {
        "pool": gram,
        "query": gram[:, 0],
        "gap_tol": 0.0,
        "max_iter": None,
        "is_gram": True,
    }
    sizes = torch.tensor([12, 5])
    ragged = {"pool_sizes": sizes}
    return {
        "fw_select": ("fw_select", pools),
        "fw_select ragged": ("fw_select", {**wide, **ragged}),
        "fw_select candidates": ("fw_select", {**of_rows, **ragged}),
        "fw_select corrective": (
            "fw_select",
            {**pools, "variant": "corrective", "max_support": 3},
        ),
        "simplex_lstsq": ("simplex_lstsq", {**least, **ragged}),
        "nnls shared": (
            "nnls",
            {**least, "pool": pool[0].half(), "query": query.half()},
        ),
        "nnls gram": ("nnls", {**of_gram, "pool": gram[0]}),
        "lstsq_adjoint": (
            "lstsq_adjoint",
            {
                "pool": pool,
                "weights": integers["weights"],
                "gradient": pool[:, :, 0].double(),
                "is_gram": False,
                "on_simplex": True,
            },
        ),
        "fw_lmo": ("fw_lmo", {**step, **ragged}),
        "knn_select": ("knn_select", {**pools, **ragged}),
        "sift_select targets": ("sift_select", {**pools, "query": targets}),
        "sift_select candidates": ("sift_select", of_rows),
        "integerize": ("integerize", {**integers, "support_sizes": sizes}),
    }


@pytest.mark.parametrize("sample", samples())
def test_registration(sample: str) -> None:
    """The operators themselves have no gradients."""
    name, arguments = samples()[sample]
    operator = getattr(OPS, name).default

    for argument, value in arguments.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            arguments[argument] = value.clone().requires_grad_()

    outputs = operator(**arguments)
    if isinstance(outputs, torch.Tensor):
        outputs = [outputs]

    assert not any(output.requires_grad for output in outputs)

    torch.library.opcheck(operator, (), arguments)


@pytest.mark.parametrize("sample", samples())
def test_a_tensor_without_values_beside_others(sample: str) -> None:
    name, arguments = samples()[sample]

    for argument, value in arguments.items():
        if isinstance(value, torch.Tensor):
            with pytest.raises(ValueError, match=f"^{name}: .* is on (cpu|meta), "):
                getattr(OPS, name)(**arguments | {argument: value.to("meta")})


def compiled(function: Callable, dynamic: bool | None = None) -> Callable:
    torch.compiler.reset()
    return torch.compile(function, fullgraph=True, dynamic=dynamic, backend="aot_eager")


def eager(function: Callable) -> Callable:
    return function


@pytest.mark.parametrize("mode", [eager, compiled])
def test_a_backward_pass_through_a_selection_fails(mode: Callable) -> None:
    pool, query = make_problem(1, 2, 6, 4, torch.float32)
    query.requires_grad_()

    def residual(pool: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
        return hullft_ops.fw_select(pool, query, 3).residual.sum()

    with pytest.raises(RuntimeError, match="does not require grad"):
        mode(residual)(pool, query).backward()


@pytest.mark.parametrize("result", ["residual", "gap"])
@pytest.mark.parametrize("operator", ["fw_select", "knn_select", "sift_select"])
def test_transforms_and_forward_mode_refuse_a_selection(
    operator: str, result: str
) -> None:
    """In place of zeros in silence."""
    pool, query = make_problem(1, 2, 6, 4, torch.float32)
    select = getattr(hullft_ops, operator)

    def total(query: torch.Tensor) -> torch.Tensor:
        return getattr(select(pool[0], query, 3), result).sum()

    def loss(query: torch.Tensor) -> torch.Tensor:
        return torch.vmap(total)(query[:, None]).sum()

    jacobian = partial(
        torch.autograd.functional.jacobian, strategy="forward-mode", vectorize=True
    )
    for differentiate in (
        lambda: torch.func.grad(total)(query),
        lambda: torch.func.grad(loss)(query),
        lambda: torch.func.jvp(total, (query,), (query,)),
        lambda: jacobian(total, query),
    ):
        with pytest.raises(NotImplementedError, match=f"{operator}: has no gradient"):
            differentiate()

    constant = torch.func.grad(lambda q: q.sum() * total(q.detach()))(query)

    torch.testing.assert_close(constant, total(query).expand_as(query))


def rows(query: torch.Tensor) -> torch.Tensor:
    return torch.arange(8).expand(query.shape[0], -1)


def corrective(pool: torch.Tensor, query: torch.Tensor) -> Any:
    selection = hullft_ops.fw_select(
        pool, query, 5, variant="corrective", max_support=4
    )
    return selection.dense(pool.shape[1])


def of_gram(pool: torch.Tensor, query: torch.Tensor) -> Any:
    gram, products = pool @ pool.mT, (pool @ query[:, :, None])[:, :, 0]
    return hullft_ops.simplex_lstsq(gram=gram, products=products)[0]


FUNCTIONS: dict[str, Callable] = {
    "fw_select": lambda p, q: hullft_ops.fw_select(p, q, 5),
    "corrective": corrective,
    "simplex_lstsq": lambda p, q: hullft_ops.simplex_lstsq(p, q),
    "nnls": lambda p, q: hullft_ops.nnls(p, q),
    "of_gram": of_gram,
    "multiset": lambda p, q: hullft_ops.fw_select(p, q, 5).multiset(),
    "fw_select candidates": lambda p, q: hullft_ops.fw_select(
        p[0], q, 5, candidates=rows(q)
    ),
    "fw_lmo": lambda p, q: hullft_ops.fw_lmo(p, q, p[:, 1]),
    "knn_select": lambda p, q: hullft_ops.knn_select(p, q, 5),
    "sift_select": lambda p, q: hullft_ops.sift_select(p, q, 5, noise=0.2),
    "sift_select candidates": lambda p, q: hullft_ops.sift_select(
        p[0], q, 5, candidates=rows(q)
    ),
    "integerize": lambda p, q: hullft_ops.integerize(p, q, torch.ones(p.shape[:2]), 5),
}


@pytest.mark.parametrize(
    ("name", "dynamic"), [("fw_select", False), *((name, True) for name in FUNCTIONS)]
)
def test_compiled_equals_eager(name: str, dynamic: bool) -> None:
    function = FUNCTIONS[name]
    compiled_function = compiled(function, dynamic)

    for batch, candidates in [(2, 12), (3, 15)]:
        pool, query = make_problem(batch, batch, candidates, 8, torch.float32)
        outputs = compiled_function(pool, query)
        expected = function(pool, query)

        torch.testing.assert_close(outputs, expected, rtol=0, atol=0)


def plain(outputs: Any) -> Any:
    return tuple(outputs) if isinstance(outputs, tuple) else outputs


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("name", "in_dims"),
    [
        (name, in_dims)
        for name in FUNCTIONS
        for in_dims in [(0, 0), (None, 0), (0, None)]
        if name != "multiset"
        # A pool with candidates has to be shared.
        and not (name.endswith("candidates") and in_dims[0] == 0)
    ],
)
def test_vmap_is_one_batch(name: str, in_dims: tuple) -> None:
    """Of batches, without torch's warning that it runs one after the other."""
    function = FUNCTIONS[name]
    pool, query = make_problem(3, 6, 12, 8, torch.float32)
    pools, queries = pool.view(2, 3, 12, 8), query.view(2, 3, 8)
    inputs = [
        batch if dim == 0 else batch[0]
        for batch, dim in zip((pools, queries), in_dims, strict=True)
    ]
    outputs = torch.vmap(lambda p, q: plain(function(p, q)), in_dims)(*inputs)

    for n in range(2):
        alone = function(
            *(
                batch[n] if dim == 0 else batch[0]
                for batch, dim in zip((pools, queries), in_dims, strict=True)
            )
        )
        expected = plain(alone)
        part = torch.utils._pytree.tree_map(lambda t, n=n: t[n], outputs)

        torch.testing.assert_close(part, expected, rtol=0, atol=0)


class Exported(torch.nn.Module):
    def __init__(self, function: Callable) -> None:
        super().__init__()
        self._function = function

    def forward(self, pool: torch.Tensor, query: torch.Tensor) -> Any:
        return self._function(pool, query)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_exported_with_a_dynamic_batch(name: str) -> None:
    function = FUNCTIONS[name]
    batch = torch.export.Dim("batch")
    candidates = torch.export.Dim("candidates", min=8)
    shapes = ({0: batch, 1: candidates}, {0: batch})
    example = make_problem(0, 2, 12, 8, torch.float32)
    program = torch.export.export(Exported(function), example, dynamic_shapes=shapes)
    pool, query = make_problem(1, 3, 15, 8, torch.float32)

    outputs = program.module()(pool, query)
    expected = function(pool, query)

    torch.testing.assert_close(outputs, expected, rtol=0, atol=0)


@pytest.mark.cpu_only(ON_VALUES)
# torch 2.15 calls the operator in a compiled graph, and raises its own error.
@pytest.mark.parametrize(
    ("mode", "error"), [(eager, ValueError), (compiled, (ValueError, RuntimeError))]
)
def test_bad_values_are_a_value_error(mode: Callable, error: Any) -> None:
    pool, query = make_problem(1, 2, 6, 4, torch.float32)

    def counts(pool: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
        return hullft_ops.fw_select(pool, query, 3).counts

    with pytest.raises(error, match="fw_select: pool has NaN or infinity in row"):
        mode(counts)(pool * float("nan"), query)


def versions(tensors: list[torch.Tensor]) -> list[int]:
    return [tensor._version for tensor in tensors]


def test_what_is_written_counts_its_versions() -> None:
    """Autograd then notices a value that was saved before."""
    tensors = make_tensors([2, 3]).clone()
    tensors.params[1].requires_grad_()
    before = [versions(column) for column in tensors]

    with torch.no_grad():
        OPS.adam_replay_(*tensors, repeats=3, **OPTIONS)
        OPS.grad_accumulate_(tensors.exp_avgs, tensors.grads)

    after = [versions(column) for column in tensors]
    # Parameters, gradients, moments and step counts.
    writes = [1, 0, 2, 1, 1]

    for counts, counts_before, written in zip(after, before, writes, strict=True):
        assert counts == [count + written for count in counts_before]


def failing(monkeypatch: pytest.MonkeyPatch, name: str, error: Exception) -> None:
    """Has the operator raise what it may in another version of torch."""

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(_ops.ops, name, fail)


@pytest.mark.parametrize("name", ["fw_select", "adam_replay_"])
def test_a_refusal_of_torch_2_15_becomes_a_value_error(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"{name}: pool has NaN or infinity"
    error = RuntimeError(f"{text}\nException raised from here")
    failing(monkeypatch, name, error)

    with pytest.raises(ValueError, match=f"^{text}$"):
        _ops.call(name, torch.ones(1))


def test_a_lack_of_memory_on_cuda_is_torchs_own_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = "CUDA out of memory: no workspace of 12 bytes on cuda:1"
    error = RuntimeError(f"hullft_ops: {text}\nException raised from here")
    failing(monkeypatch, "fw_select", error)

    with pytest.raises(torch.OutOfMemoryError, match=f"^fw_select: {text}$"):
        _ops.call("fw_select", torch.ones(1))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(
            "hullft_ops: torch makes no tensor of 8 bytes: CUDA error: illegal"
        ),
        RuntimeError("fw_select: CUDA error: out of memory"),
        RuntimeError("fw_select: this torch was built without CUDA"),
        RuntimeError("fw_select: no current stream of device 1"),
        RuntimeError("knn_select: pool is empty"),
        RuntimeError(""),
        torch.OutOfMemoryError("fw_select: nothing left"),
    ],
)
def test_other_errors_stay_as_they_are(
    error: RuntimeError, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, "fw_select", error)

    with pytest.raises(type(error)) as raised:
        _ops.call("fw_select", torch.ones(1))

    assert raised.value is error
