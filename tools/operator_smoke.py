"""Runs every operator once against its reference, needing nothing but torch and hullft_ops.

python tools/operator_smoke.py
"""

from collections.abc import Callable

import torch

import hullft_ops
from hullft_ops import _C, reference


def check_selection() -> None:
    generator = torch.Generator().manual_seed(0)
    pool = torch.randn(60, 24, generator=generator)
    pool = pool / pool.norm(dim=-1, keepdim=True)
    query = pool[:8].mean(0)
    selected = hullft_ops.fw_select(pool, query, 9)
    of_rows = hullft_ops.fw_select(pool, query, 9, candidates=torch.arange(60))
    m = int(selected.support_size)
    wide, weights = (pool.double(), query.double()), torch.ones(6)
    for ours, expected in (
        (selected.indices[:m], reference.fw_select(pool, query, 9).indices),
        (selected.counts[:m], reference.fw_select(pool, query, 9).counts),
        (of_rows.counts, selected.counts),
        (
            hullft_ops.simplex_lstsq(*wide).weights,
            reference.simplex_lstsq(pool, query).weights,
        ),
        (hullft_ops.nnls(*wide).weights, reference.nnls(pool, query).weights),
        (
            hullft_ops.knn_select(pool, query, 5).indices,
            reference.knn_select(pool, query, 5).indices,
        ),
        (
            hullft_ops.sift_select(pool, query, 9).picks,
            reference.sift_select(pool, query, 9).picks,
        ),
        (
            hullft_ops.fw_lmo(pool, query, pool[0]).vertex,
            reference.fw_lmo(pool, query, pool[0]).vertex,
        ),
        (
            hullft_ops.integerize(pool[:6], query, weights, 11),
            reference.integerize(pool[:6], query, weights, 11),
        ),
    ):
        torch.testing.assert_close(ours, torch.as_tensor(expected))


def check_replay() -> None:
    parameter = torch.nn.Parameter(torch.linspace(-1, 1, 100, dtype=torch.float64))
    peer = torch.nn.Parameter(parameter.detach().clone())
    ours, theirs = (
        hullft_ops.ReplayAdam([parameter], lr=1e-2),
        torch.optim.Adam([peer], lr=1e-2),
    )
    parameter.grad = peer.grad = torch.linspace(1, 2, 100, dtype=torch.float64)
    ours.step(repeats=3)
    for _ in range(3):
        theirs.step()
    torch.testing.assert_close(parameter, peer, rtol=1e-14, atol=1e-14)


def check_compiled() -> None:
    compiled = torch.compile(
        lambda p, q: hullft_ops.fw_select(p, q, 4).counts,
        fullgraph=True,
        backend="aot_eager",
    )
    pool, query = torch.eye(8), torch.full((8,), 0.125)
    torch.testing.assert_close(
        compiled(pool, query), hullft_ops.fw_select(pool, query, 4).counts
    )


def check_error(select: Callable[..., object], *kinds: type[Exception]) -> None:
    try:
        select(torch.full((3, 2), float("nan")), torch.ones(2), 1)
    except kinds as error:
        if "pool has NaN or infinity" not in str(error):
            raise
    else:
        raise AssertionError("a pool of NaN was accepted")


def check_errors() -> None:
    check_error(hullft_ops.fw_select, ValueError)
    compiled = torch.compile(hullft_ops.fw_select, fullgraph=True, backend="aot_eager")
    check_error(compiled, ValueError, RuntimeError)  # which of them, torch decides


def check_cuda_kernels() -> None:
    """They are in the registry, where the binary says that it has some."""
    names = [
        n for n in torch._C._dispatch_get_all_op_names() if n.startswith("hullft_ops::")
    ]
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    without = [name for name in names if not has_kernel(name, "CUDA")]
    if _C.build_info()["cuda"] and (without or not names):
        raise AssertionError(f"no CUDA kernel for {without or 'any operator'}")


def main() -> None:
    check_selection()
    check_replay()
    check_compiled()
    check_errors()
    check_cuda_kernels()
    print(f"hullft_ops {hullft_ops.__version__}, {_C.build_info()}")
    print(f"works with torch {torch.__version__}")


if __name__ == "__main__":
    main()
