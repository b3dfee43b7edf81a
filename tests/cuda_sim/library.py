"""The simulated library from Python: each function takes torch tensors and launches one kernel."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from adam_problems import OPTIONS, AdamTensors
from hullft_ops.lmo import LmoStep

STORAGE = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
VARIANTS = {"vanilla": 0, "away": 1, "pairwise": 2}
H100_SHARED_BYTES = 227 * 1024
WORKSPACE_BYTES = 2 << 30

_P, _I64, _I32, _F64 = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32, ctypes.c_double


class SimulatorError(RuntimeError):
    """What the simulator or the race checker reported."""


class _Schedule(ctypes.Structure):
    _fields_ = [
        ("seed", ctypes.c_uint),
        ("max_shared_bytes", _I64),
        ("max_workspace_bytes", _I64),
    ]


class _Pool(ctypes.Structure):
    _fields_ = [
        ("base", _P), ("elements", _I64), ("batch_stride", _I64), ("row_stride", _I64),
        ("n_rows", _I64), ("candidates", _P), ("sizes", _P), ("width", _I32), ("storage", _I32),
        ("d", _I64), ("query", _P), ("batch", _I64), ("query_stride", _I64),
    ]  # fmt: skip


class _Selection(ctypes.Structure):
    _fields_ = [
        ("indices", _P), ("counts", _P), ("support_size", _P), ("num_iter", _P),
        ("weights", _P), ("residual", _P), ("gap", _P),
    ]  # fmt: skip


class _FwCase(ctypes.Structure):
    _fields_ = [
        ("pool", _Pool), ("out", _Selection), ("n_select", _I32), ("max_iter", _I32),
        ("swap_passes", _I32), ("variant", _I32), ("tol", _F64), ("gap_tol", _F64),
        ("force_gram", _I32), ("force_warp", _I32), ("force_threads", _I32), ("force_slots", _I32),
    ]  # fmt: skip


class _KnnCase(ctypes.Structure):
    _fields_ = [("pool", _Pool), ("out", _Selection), ("n_select", _I32)]


class _SiftCase(ctypes.Structure):
    _fields_ = [
        ("pool", _Pool), ("out", _Selection), ("picks", _P), ("variance", _P), ("n_select", _I32),
        ("n_targets", _I32), ("noise", _F64), ("force_gram", _I32), ("force_threads", _I32),
    ]  # fmt: skip


class _LmoCase(ctypes.Structure):
    _fields_ = [
        ("pool", _Pool), ("current", _P), ("index", _P), ("correlation", _P), ("gamma", _P),
        ("gap", _P),
    ]  # fmt: skip


class _IntegerizeCase(ctypes.Structure):
    _fields_ = [
        ("pool", _Pool), ("weights", _P), ("counts", _P), ("wide_weights", _I32),
        ("n_select", _I32), ("swap_passes", _I32),
    ]  # fmt: skip


class _GramCase(ctypes.Structure):
    _fields_ = [("pool", _Pool), ("gram", _P)]


class _AdamCase(ctypes.Structure):
    _fields_ = [
        ("n", _I32), ("param_storage", _I32), ("grad_storage", _I32), ("decoupled", _I32),
        ("maximize", _I32), ("misalign", _I32), ("wide_steps", _I32), ("wide_lr", _I32),
        ("numels", _P), ("params", _P), ("grads", _P),
        ("exp_avgs", _P), ("exp_avg_sqs", _P), ("device_steps", _P), ("steps_done", _P),
        ("repeats", _I64), ("lr", _F64), ("beta1", _F64), ("beta2", _F64), ("eps", _F64),
        ("weight_decay", _F64), ("device_lr", _P), ("seed", _I64),
    ]  # fmt: skip


class _AccumulateCase(ctypes.Structure):
    _fields_ = [
        ("n", _I32), ("cache_storage", _I32), ("grad_storage", _I32), ("misalign", _I32),
        ("numels", _P), ("caches", _P), ("grads", _P), ("alpha", _F64), ("beta", _F64),
    ]  # fmt: skip


class Plan(ctypes.Structure):
    """FwPlan of csrc/cuda/frank_wolfe.h."""

    _fields_ = [
        ("gram", ctypes.c_bool), ("shared_state", ctypes.c_bool), ("warp", ctypes.c_bool),
        ("threads", ctypes.c_int), ("slots", ctypes.c_int), ("shared_limit", _I64),
        ("column_stride", _I64), ("state_bytes", _I64), ("columns_offset", _I64), ("part", _I64),
        ("workspace_bytes", _I64),
    ]  # fmt: skip


def real_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of state and outputs."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@dataclass
class Answer:
    """The outputs of a selection kernel, of shape [B, n_select] or [B]."""

    indices: torch.Tensor
    weights: torch.Tensor
    counts: torch.Tensor
    support_size: torch.Tensor
    residual: torch.Tensor
    gap: torch.Tensor
    num_iter: torch.Tensor

    @classmethod
    def empty(cls, batch: int, n_select: int, dtype: torch.dtype) -> "Answer":
        real, rows, one = real_dtype(dtype), (batch, n_select), (batch,)
        return cls(
            torch.zeros(rows, dtype=torch.int64),
            torch.zeros(rows, dtype=real),
            torch.zeros(rows, dtype=torch.int64),
            torch.zeros(one, dtype=torch.int64),
            torch.zeros(one, dtype=real),
            torch.zeros(one, dtype=real),
            torch.zeros(one, dtype=torch.int64),
        )

    def pointers(self) -> _Selection:
        return _Selection(
            _pointer(self.indices), _pointer(self.counts), _pointer(self.support_size),
            _pointer(self.num_iter), _pointer(self.weights), _pointer(self.residual),
            _pointer(self.gap),
        )  # fmt: skip


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

    def schedule(self) -> _Schedule:
        return _Schedule(self.seed, self.max_shared_bytes, self.max_workspace_bytes)


def _pointer(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _array(values: Sequence[int | float | None], kind: type) -> ctypes.Array:
    return (kind * len(values))(*values)


def _pointers(tensors: Sequence[torch.Tensor]) -> ctypes.Array:
    return _array([t.data_ptr() for t in tensors], _P)


def _numels(tensors: Sequence[torch.Tensor]) -> ctypes.Array:
    return _array([t.numel() for t in tensors], _I64)


def _address(array: ctypes.Array) -> int:
    return ctypes.addressof(array)


def _storage_elements(tensor: torch.Tensor) -> int:
    """From the first element to the last one, gaps included."""
    if tensor.numel() == 0:
        return 0
    return 1 + sum(
        (n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)
    )


def _pool(
    pool: torch.Tensor,
    query: torch.Tensor,
    candidates: torch.Tensor | None,
    sizes: torch.Tensor | None,
) -> _Pool:
    width = pool.shape[-2] if candidates is None else candidates.shape[1]
    return _Pool(
        _pointer(pool), _storage_elements(pool), pool.stride(0) if pool.dim() == 3 else 0,
        pool.stride(-2), pool.shape[-2], _pointer(candidates), _pointer(sizes), width,
        STORAGE[pool.dtype], pool.shape[-1], _pointer(query), query.shape[0], query.stride(0),
    )  # fmt: skip


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
        candidates: torch.Tensor | None = None,
        sizes: torch.Tensor | None = None,
        launch: Launch = Launch(),
    ) -> Answer:
        answer = Answer.empty(query.shape[0], n_select, pool.dtype)
        gram = -1 if launch.gram is None else int(launch.gram)
        case = _FwCase(
            _pool(pool, query, candidates, sizes), answer.pointers(), n_select, max_iter,
            swap_passes, VARIANTS[variant], tol, gap_tol, gram, int(launch.warp), launch.threads,
            launch.slots,
        )  # fmt: skip
        self._call("sim_frank_wolfe", case, launch)
        return answer

    def plan(
        self,
        batch: int,
        candidates: int,
        dim: int,
        n_select: int,
        max_shared_bytes: int,
        *,
        shared: bool = False,
    ) -> Plan:
        plan = Plan()
        self._library.sim_plan(
            _I64(batch), _I32(candidates), _I64(dim), _I32(n_select), _I32(shared),
            _I64(max_shared_bytes), ctypes.byref(plan),
        )  # fmt: skip
        return plan

    def knn(
        self,
        pool: torch.Tensor,
        query: torch.Tensor,
        n_select: int,
        *,
        sizes: torch.Tensor | None = None,
        launch: Launch = Launch(),
    ) -> Answer:
        answer = Answer.empty(query.shape[0], n_select, pool.dtype)
        case = _KnnCase(_pool(pool, query, None, sizes), answer.pointers(), n_select)
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
    ) -> tuple[Answer, torch.Tensor, torch.Tensor]:
        """The selection, the picks and the variance after each; query [B, d] or [B, m, d]."""
        answer = Answer.empty(query.shape[0], n_select, pool.dtype)
        picks, variance = (
            torch.zeros_like(answer.indices),
            torch.zeros_like(answer.weights),
        )
        gram = -1 if launch.gram is None else int(launch.gram)
        case = _SiftCase(
            _pool(pool, query, candidates, sizes), answer.pointers(), _pointer(picks),
            _pointer(variance), n_select, query.shape[1] if query.dim() == 3 else 1, noise, gram,
            launch.threads,
        )  # fmt: skip
        self._call("sim_sift", case, launch)
        return answer, picks, variance

    def lmo(
        self,
        pool: torch.Tensor,
        query: torch.Tensor,
        current: torch.Tensor,
        *,
        sizes: torch.Tensor | None = None,
        launch: Launch = Launch(),
    ) -> LmoStep:
        batch = (query.shape[0],)
        reals = [torch.zeros(batch, dtype=real_dtype(pool.dtype)) for _ in range(3)]
        step = LmoStep(torch.zeros(batch, dtype=torch.int64), *reals)
        pointers = [_pointer(t) for t in step]
        case = _LmoCase(_pool(pool, query, None, sizes), current.data_ptr(), *pointers)
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
        case = _IntegerizeCase(
            _pool(support, query, None, sizes), _pointer(weights), _pointer(counts),
            int(weights.dtype == torch.float64), n_select, swap_passes,
        )  # fmt: skip
        self._call("sim_integerize", case, launch)
        return counts

    def adam_replay_(
        self,
        tensors: AdamTensors,
        repeats: int,
        *,
        device_steps: bool = False,
        device_lr: torch.Tensor | None = None,
        seed: int | None = None,
        misalign: int = 0,
        launch: Launch = Launch(),
        **options: float | bool,
    ) -> None:
        """Updates all but the gradients; ``misalign`` elements keep written tensors off 16 bytes.

        As in the operator, steps on the device are advanced by the launch, others by the caller.
        """
        o = OPTIONS | options
        params, grads, exp_avgs, exp_avg_sqs, steps = tensors
        lists = [_pointers(column) for column in (params, grads, exp_avgs, exp_avg_sqs)]
        numels = _numels(params)
        on_device = _array([t.data_ptr() if device_steps else None for t in steps], _P)
        done = _array([-1.0 if device_steps else t.item() for t in steps], _F64)
        wide_lr = device_lr is not None and device_lr.dtype == torch.float64
        case = _AdamCase(
            len(params), STORAGE[params[0].dtype], STORAGE[grads[0].dtype], int(o["decoupled"]),
            int(o["maximize"]), misalign, int(steps[0].dtype == torch.float64), int(wide_lr),
            _address(numels), *map(_address, lists),
            _address(on_device), _address(done), repeats, o["lr"], o["beta1"], o["beta2"],
            o["eps"], o["weight_decay"], _pointer(device_lr), -1 if seed is None else seed,
        )  # fmt: skip
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
        lists = [_pointers(column) for column in (caches, grads)]
        numels = _numels(caches)
        case = _AccumulateCase(
            len(caches), STORAGE[caches[0].dtype], STORAGE[grads[0].dtype], misalign,
            _address(numels), *map(_address, lists), alpha, beta,
        )  # fmt: skip
        self._call("sim_accumulate", case, launch)

    def gram(self, pool: torch.Tensor, launch: Launch = Launch()) -> torch.Tensor:
        batch, width, _ = pool.shape
        gram = torch.zeros((batch, width, width), dtype=real_dtype(pool.dtype))
        query = pool[:, 0].contiguous()
        self._call(
            "sim_gram",
            _GramCase(_pool(pool, query, None, None), _pointer(gram)),
            launch,
        )
        return gram
