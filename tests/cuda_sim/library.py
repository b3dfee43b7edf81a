"""The simulated library from Python: each function takes torch tensors and launches one kernel."""

import ctypes
from collections.abc import Sequence
from ctypes import addressof, c_double, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

import hullft_ops
from adam_problems import OPTIONS, AdamTensors
from cuda_sim.structures import (
    AccumulateCase,
    AdamCase,
    AdjointCase,
    FwCase,
    GramCase,
    IntegerizeCase,
    KnnCase,
    LmoCase,
    LstsqCase,
    Plan,
    Pool,
    Schedule,
    Selection,
    SiftCase,
    storage_elements,
)
from hullft_ops.lmo import LmoStep

STORAGE = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
VARIANTS = {"vanilla": 0, "corrective": 1}
CONSTRAINTS = {"simplex": 0, "non-negative": 1}
H100_SHARED_BYTES = 227 * 1024
H100_SMS = 132
WORKSPACE_BYTES = 2 << 30


class Lstsq(NamedTuple):
    weights: torch.Tensor  # [B, K]; the others [B]
    residual: torch.Tensor
    gap: torch.Tensor
    support_size: torch.Tensor
    num_iter: torch.Tensor


class SimulatorError(RuntimeError):
    """What the simulator or the race checker reported."""


def real_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of state and outputs."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _empty_selection(
    batch: int, n_select: int, dtype: torch.dtype
) -> hullft_ops.Selection:
    """Outputs of a selection kernel, of shape [B, n_select] or [B]."""
    real = real_dtype(dtype)
    return hullft_ops.Selection(
        indices=torch.zeros(batch, n_select, dtype=torch.int64),
        weights=torch.zeros(batch, n_select, dtype=real),
        counts=torch.zeros(batch, n_select, dtype=torch.int64),
        support_size=torch.zeros(batch, dtype=torch.int64),
        residual=torch.zeros(batch, dtype=real),
        gap=torch.zeros(batch, dtype=real),
        num_iter=torch.zeros(batch, dtype=torch.int64),
    )


@dataclass(frozen=True)
class Launch:
    """How a kernel is launched and in which order its threads run."""

    seed: int = 0
    gram: bool | None = None
    threads: int = -1
    max_shared_bytes: int = H100_SHARED_BYTES
    slots: int = -1
    """Columns that are kept, at most as many as planned."""
    warp: bool = True
    """With Gram matrices and at most 256 candidates, one warp takes the steps."""
    max_workspace_bytes: int = WORKSPACE_BYTES
    sms: int = H100_SMS
    rounds: int = -1
    """In which the device computes columns, -1: as planned."""

    def force_gram(self) -> int:
        return -1 if self.gram is None else int(self.gram)

    def schedule(self) -> ctypes.Structure:
        return Schedule(
            self.seed,
            self.max_shared_bytes,
            self.max_workspace_bytes,
            self.sms,
            self.rounds,
        )


def _pointer(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _outputs(answer: hullft_ops.Selection) -> ctypes.Structure:
    return Selection(**{k: _pointer(tensor) for k, tensor in answer._asdict().items()})


def _pointers(tensors: Sequence[torch.Tensor | None]) -> ctypes.Array:
    return (c_void_p * len(tensors))(*map(_pointer, tensors))


def _numels(tensors: Sequence[torch.Tensor]) -> ctypes.Array:
    return (c_int64 * len(tensors))(*[tensor.numel() for tensor in tensors])


def _pool(
    pool: torch.Tensor,
    query: torch.Tensor,
    candidates: torch.Tensor | None,
    sizes: torch.Tensor | None,
) -> ctypes.Structure:
    n_rows = pool.shape[-2]
    return Pool(
        base=_pointer(pool),
        elements=storage_elements(pool),
        batch_stride=pool.stride(0) if pool.dim() == 3 else 0,
        row_stride=pool.stride(-2),
        n_rows=n_rows,
        candidates=_pointer(candidates),
        sizes=_pointer(sizes),
        width=n_rows if candidates is None else candidates.shape[1],
        storage=STORAGE[pool.dtype],
        d=pool.shape[-1],
        query=_pointer(query),
        batch=query.shape[0],
        query_stride=query.stride(0),
    )


class Library:
    """Loads one build of the kernels."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))

    def _call(self, name: str, case: ctypes.Structure, launch: Launch) -> None:
        function = getattr(self._library, name)
        function.restype = ctypes.c_char_p
        error = function(ctypes.byref(case), ctypes.byref(launch.schedule()))
        if error is not None:
            raise SimulatorError(error.decode())

    def frank_wolfe(
        self,
        pool: torch.Tensor,
        query: torch.Tensor,
        n_select: int,
        *,
        max_iter: int = 250,
        tol: float = 1e-5,
        gap_tol: float = 0.0,
        variant: str = "vanilla",
        swap_passes: int = 2,
        max_support: int | None = None,
        candidates: torch.Tensor | None = None,
        sizes: torch.Tensor | None = None,
        launch: Launch = Launch(),
    ) -> hullft_ops.Selection:
        answer = _empty_selection(query.shape[0], n_select, pool.dtype)
        case = FwCase(
            pool=_pool(pool, query, candidates, sizes),
            out=_outputs(answer),
            n_select=n_select,
            max_support=max_support or n_select,
            max_iter=max_iter,
            swap_passes=swap_passes,
            variant=VARIANTS[variant],
            tol=tol,
            gap_tol=gap_tol,
            force_gram=launch.force_gram(),
            force_warp=launch.warp,
            force_threads=launch.threads,
            force_slots=launch.slots,
        )
        self._call("sim_frank_wolfe", case, launch)
        return answer

    def lstsq(
        self,
        constraint: str,
        pool: torch.Tensor,
        query: torch.Tensor,
        *,
        sizes: torch.Tensor | None = None,
        launch: Launch = Launch(),
    ) -> Lstsq:
        view = _pool(pool, query, None, sizes)
        real = real_dtype(pool.dtype)
        answer = Lstsq(
            weights=torch.zeros(view.batch, view.width, dtype=real),
            residual=torch.zeros(view.batch, dtype=real),
            gap=torch.zeros(view.batch, dtype=real),
            support_size=torch.zeros(view.batch, dtype=torch.int64),
            num_iter=torch.zeros(view.batch, dtype=torch.int64),
        )
        case = LstsqCase(
            pool=view,
            constraint=CONSTRAINTS[constraint],
            force_gram=launch.force_gram(),
            force_threads=launch.threads,
            **{k: _pointer(tensor) for k, tensor in answer._asdict().items()},
        )
        self._call("sim_lstsq", case, launch)
        return answer

    def lstsq_adjoint(
        self,
        pool: torch.Tensor,
        weights: torch.Tensor,
        gradient: torch.Tensor,
        on_simplex: bool,
        *,
        launch: Launch = Launch(),
    ) -> torch.Tensor:
        out = torch.zeros_like(gradient)
        query = pool.new_zeros(len(weights), pool.shape[-1])  # is not read
        case = AdjointCase(
            pool=_pool(pool, query, None, None),
            weights=_pointer(weights),
            gradient=_pointer(gradient),
            out=_pointer(out),
            on_simplex=on_simplex,
        )
        self._call("sim_lstsq_adjoint", case, launch)
        return out

    def plan(
        self,
        batch: int,
        candidates: int,
        dim: int,
        n_select: int,
        *,
        shared: bool = False,
        launch: Launch = Launch(),
    ) -> ctypes.Structure:
        plan = Plan()
        self._library.sim_plan(
            c_int64(batch),
            c_int32(candidates),
            c_int64(dim),
            c_int32(n_select),
            c_int32(shared),
            ctypes.byref(launch.schedule()),
            ctypes.byref(plan),
        )
        return plan

    def knn(
        self,
        pool: torch.Tensor,
        query: torch.Tensor,
        n_select: int,
        *,
        candidates: torch.Tensor | None = None,
        sizes: torch.Tensor | None = None,
        launch: Launch = Launch(),
    ) -> hullft_ops.Selection:
        answer = _empty_selection(query.shape[0], n_select, pool.dtype)
        case = KnnCase(
            pool=_pool(pool, query, candidates, sizes),
            out=_outputs(answer),
            n_select=n_select,
        )
        self._call("sim_knn", case, launch)
        return answer

    def sift(
        self,
        pool: torch.Tensor,
        query: torch.Tensor,
        n_select: int,
        *,
        noise: float = 0.01,
        candidates: torch.Tensor | None = None,
        sizes: torch.Tensor | None = None,
        launch: Launch = Launch(),
    ) -> hullft_ops.SiftSelection:
        """query: [B, d] or [B, m, d]."""
        answer = _empty_selection(query.shape[0], n_select, pool.dtype)
        picks = torch.zeros_like(answer.indices)
        variance = torch.zeros_like(answer.weights)
        case = SiftCase(
            pool=_pool(pool, query, candidates, sizes),
            out=_outputs(answer),
            picks=_pointer(picks),
            variance=_pointer(variance),
            n_select=n_select,
            n_targets=query.shape[1] if query.dim() == 3 else 1,
            noise=noise,
            force_gram=launch.force_gram(),
            force_threads=launch.threads,
        )
        self._call("sim_sift", case, launch)
        return hullft_ops.SiftSelection(*answer, picks, variance)

    def lmo(
        self,
        pool: torch.Tensor,
        query: torch.Tensor,
        current: torch.Tensor,
        *,
        sizes: torch.Tensor | None = None,
        launch: Launch = Launch(),
    ) -> LmoStep:
        batch = query.shape[0]
        real = real_dtype(pool.dtype)
        step = LmoStep(
            vertex=torch.zeros(batch, dtype=torch.int64),
            correlation=torch.zeros(batch, dtype=real),
            gamma=torch.zeros(batch, dtype=real),
            gap=torch.zeros(batch, dtype=real),
        )
        case = LmoCase(
            pool=_pool(pool, query, None, sizes),
            current=_pointer(current),
            index=_pointer(step.vertex),
            correlation=_pointer(step.correlation),
            gamma=_pointer(step.gamma),
            gap=_pointer(step.gap),
        )
        self._call("sim_lmo", case, launch)
        return step

    def integerize(
        self,
        support: torch.Tensor,
        query: torch.Tensor,
        weights: torch.Tensor,
        n_select: int,
        *,
        swap_passes: int = 2,
        sizes: torch.Tensor | None = None,
        launch: Launch = Launch(),
    ) -> torch.Tensor:
        counts = torch.zeros(weights.shape, dtype=torch.int64)
        case = IntegerizeCase(
            pool=_pool(support, query, None, sizes),
            weights=_pointer(weights),
            counts=_pointer(counts),
            wide_weights=weights.dtype == torch.float64,
            n_select=n_select,
            swap_passes=swap_passes,
        )
        self._call("sim_integerize", case, launch)
        return counts

    def adam_replay_(
        self,
        tensors: AdamTensors,
        repeats: int,
        *,
        device_steps: bool = False,
        device_lr: torch.Tensor | None = None,
        device_repeats: torch.Tensor | None = None,
        seed: int | None = None,
        lr_scales: Sequence[float] | None = None,
        misalign: int = 0,
        launch: Launch = Launch(),
        **options: float | bool,
    ) -> None:
        """Updates all but the gradients; ``misalign`` elements keep written tensors off 16 bytes.

        As in the operator, steps on the device are advanced by the launch, others by the caller.
        """
        params, grads, exp_avgs, exp_avg_sqs, steps = tensors
        n = len(params)
        lists = {
            "params": params,
            "grads": grads,
            "exp_avgs": exp_avgs,
            "exp_avg_sqs": exp_avg_sqs,
            "device_steps": steps if device_steps else [None] * n,
        }
        arrays = {name: _pointers(tensors) for name, tensors in lists.items()}
        counts = [-1.0 if device_steps else step.item() for step in steps]
        arrays["numels"] = _numels(params)
        arrays["steps_done"] = (c_double * n)(*counts)
        arrays["lr_scales"] = (c_double * n)(*(lr_scales or [1.0] * n))
        case = AdamCase(
            n=n,
            param_storage=STORAGE[params[0].dtype],
            grad_storage=STORAGE[grads[0].dtype],
            misalign=misalign,
            wide_steps=steps[0].dtype == torch.float64,
            wide_lr=device_lr is not None and device_lr.dtype == torch.float64,
            repeats=repeats,
            device_lr=_pointer(device_lr),
            device_repeats=_pointer(device_repeats),
            seed=-1 if seed is None else seed,
            **{name: addressof(array) for name, array in arrays.items()},
            **OPTIONS | options,
        )
        self._call("sim_adam_replay", case, launch)

    def accumulate_(
        self,
        caches: Sequence[torch.Tensor],
        grads: Sequence[torch.Tensor],
        alpha: float,
        beta: float,
        *,
        misalign: int = 0,
        launch: Launch = Launch(),
    ) -> None:
        numels = _numels(caches)
        cache_pointers = _pointers(caches)
        grad_pointers = _pointers(grads)
        case = AccumulateCase(
            n=len(caches),
            cache_storage=STORAGE[caches[0].dtype],
            grad_storage=STORAGE[grads[0].dtype],
            misalign=misalign,
            numels=addressof(numels),
            caches=addressof(cache_pointers),
            grads=addressof(grad_pointers),
            alpha=alpha,
            beta=beta,
        )
        self._call("sim_accumulate", case, launch)

    def gram(
        self,
        pool: torch.Tensor,
        query: torch.Tensor,
        *,
        candidates: torch.Tensor | None = None,
        sizes: torch.Tensor | None = None,
        share: int = 0,
        launch: Launch = Launch(),
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Gram matrices [B, K, K], or [1, K, K] of a shared pool, and the products of the pools
        with their queries [B, K]. A block takes ``share`` columns of long rows."""
        view = _pool(pool, query, candidates, sizes)
        pools = 1 if pool.dim() == 2 and candidates is None else view.batch
        dtype = real_dtype(pool.dtype)
        gram = torch.zeros(pools, view.width, view.width, dtype=dtype)
        products = torch.zeros(view.batch, view.width, dtype=dtype)
        case = GramCase(
            pool=view, gram=_pointer(gram), products=_pointer(products), share=share
        )
        self._call("sim_gram", case, launch)
        return gram, products

    def warp_tiles(self, pools: int, candidates: int, dim: int, sms: int) -> int:
        """Of a warp that makes a part of a Gram matrix, 0: each tile has a block of its own."""
        count: int = self._library.sim_warp_tiles(
            c_int64(pools), c_int32(candidates), c_int64(dim), c_int64(sms)
        )
        return count
