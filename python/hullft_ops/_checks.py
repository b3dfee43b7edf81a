"""Checks of the public functions' arguments, before any operator runs.

They read only metadata (shapes, dtypes, devices), so errors are the same for CPU, CUDA, meta and
fake tensors. The operators check values (NaN, ragged sizes, candidates) in the pass that reads
them.
"""

import operator
import sys
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

FLOAT_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
FLOATS = "float32, float64, bfloat16 or float16"
ADAM_STATE = ("exp_avg", "exp_avg_sq", "step")  # as the operator takes it
VARIANTS = ("vanilla", "away", "pairwise")
_INT32_MAX = 2**31 - 1
_INF = float("inf")
_LARGEST_INT = 2**1023
_TORCH_INTEGERS = (int, torch.SymInt)
# NumPy's integers are Integral but not int. Its floats are Real, but most are not float.
_INTEGERS = (*_TORCH_INTEGERS, Integral)
_NUMBERS = (float, int, Real)


def no_tensor(op: str, name: str, value: object) -> TypeError:
    kind = type(value).__name__
    advice = "; torch.from_numpy(array) makes one that shares its memory"
    return TypeError(
        f"{op}: {name} must be a torch.Tensor, got {kind}{advice if kind == 'ndarray' else ''}"
    )


def check_tensor(op: str, name: str, value: object) -> Tensor:
    if not isinstance(value, Tensor):
        raise no_tensor(op, name, value)
    if value.is_nested:
        raise TypeError(f"{op}: {name} must be dense, got a nested tensor")
    if value.layout != torch.strided:
        raise TypeError(f"{op}: {name} must be dense, got layout {value.layout}")
    return value


def check_float_tensor(op: str, name: str, value: object) -> Tensor:
    tensor = check_tensor(op, name, value)
    if tensor.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{op}: {name} must be {FLOATS}, got {tensor.dtype}")
    return tensor


def check_int64(op: str, name: str, value: object, query: Tensor) -> Tensor:
    tensor = check_tensor(op, name, value)
    if tensor.dtype != torch.int64:
        raise TypeError(f"{op}: {name} must be int64, got {tensor.dtype}")
    check_device(op, name, tensor, "query", query)
    return tensor


def check_like(
    op: str, name: str, tensor: Tensor, like_name: str, like: Tensor
) -> None:
    if tensor.dtype != like.dtype:
        raise TypeError(f"{op}: {name} is {tensor.dtype}, {like_name} is {like.dtype}")
    check_device(op, name, tensor, like_name, like)


def check_device(
    op: str, name: str, tensor: Tensor, like_name: str, like: Tensor
) -> None:
    if tensor.device != like.device:
        raise ValueError(
            f"{op}: {name} is on {tensor.device}, {like_name} is on {like.device}"
        )


def check_integer(
    op: str, name: str, value: object, low: int, high: int = _INT32_MAX
) -> int:
    """The value as an int for torch's operators."""
    if isinstance(value, bool) or not isinstance(value, _INTEGERS):
        raise TypeError(f"{op}: {name} must be an int, got {type(value).__name__}")
    number = value if isinstance(value, _TORCH_INTEGERS) else operator.index(value)
    if number < low or number > high:
        raise ValueError(f"{op}: {name} must be in {low}..{high}, got {number}")
    return number  # type: ignore[return-value]


def check_number(op: str, name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, _NUMBERS):
        raise TypeError(f"{op}: {name} must be a number, got {type(value).__name__}")
    if isinstance(value, int) and not -_LARGEST_INT <= value <= _LARGEST_INT:
        raise ValueError(
            f"{op}: {name} must be a float64, got an int of {value.bit_length()} bits"
        )
    return value  # type: ignore[return-value]


def check_tolerance(op: str, name: str, value: object) -> None:
    if not check_number(op, name, value) >= 0:  # NaN too
        raise ValueError(f"{op}: {name} must be >= 0, got {value}")


def check_finite(op: str, name: str, value: object) -> None:
    if not -_INF < check_number(op, name, value) < _INF:  # NaN too
        raise ValueError(f"{op}: {name} must be finite, got {value}")


def check_noise(op: str, value: object, name: str = "noise") -> None:
    if (
        not 0 < check_number(op, name, value) < _INF
    ):  # NaN too; math.isfinite cannot be traced
        raise ValueError(f"{op}: {name} must be finite and > 0, got {value}")


def check_member(op: str, name: str, value: object, member: str, kind: str) -> None:
    """TypeError unless ``value`` has ``member``. ``kind`` says what has it, and what makes one."""
    if not hasattr(value, member):
        raise TypeError(f"{op}: {name} must be {kind}, got {type(value).__name__}")


def check_text(op: str, name: str, value: object) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{op}: {name} must be a str, got {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{op}: {name} must be valid Unicode: {error}") from error


def check_variant(op: str, variant: object) -> None:
    if not isinstance(variant, str):
        raise TypeError(f"{op}: variant must be a str, got {type(variant).__name__}")
    if variant not in VARIANTS:
        raise ValueError(
            f"{op}: variant must be one of {', '.join(VARIANTS)}, got {variant!r}"
        )


def check_queries(
    op: str,
    pool: Tensor,
    queries: Sequence[Tensor],
    pool_sizes: object,
    *,
    targets: bool = False,
) -> None:
    """Check a pool and ``[query]``, or embeddings [M, d] and ``[candidates, query]``."""
    *candidates, query = queries
    name = "embeddings" if candidates else "pool"
    if candidates and check_float_tensor(op, name, pool).dim() != 2:
        raise ValueError(
            f"{op}: embeddings must have shape [M, d], got {list(pool.shape)}"
        )
    check_pool(op, name, pool, query, targets=targets)
    if candidates:
        check_candidates(op, candidates[0], query)
    check_sizes(op, "pool_sizes", pool_sizes, query)


def check_pool(
    op: str, name: str, pool: Tensor, query: Tensor, *, targets: bool = False
) -> None:
    """Check pool [K, d] or [B, K, d], and query [d], [B, d] or, for several targets, [B, m, d]."""
    check_float_tensor(op, name, pool)
    check_float_tensor(op, "query", query)
    pool_dim, query_dim = pool.dim(), query.dim()
    if pool_dim not in (2, 3):
        raise ValueError(
            f"{op}: {name} must have shape [K, d] or [B, K, d], got {list(pool.shape)}"
        )
    check_like(op, "query", query, name, pool)
    if not 1 <= query_dim <= (3 if targets else 2):
        shapes = "[d], [B, d] or [B, m, d]" if targets else "[d] or [B, d]"
        raise ValueError(
            f"{op}: query must have shape {shapes}, got {list(query.shape)}"
        )
    if query_dim == 3 and query.shape[1] == 0:
        raise ValueError(f"{op}: query has no targets, got shape {list(query.shape)}")
    *_, rows, dim = pool.shape
    if query.shape[-1] != dim:
        raise ValueError(f"{op}: query has dim {query.shape[-1]}, {name} has dim {dim}")
    if dim == 0:
        raise ValueError(f"{op}: {name} has dim 0")
    if rows == 0:
        raise ValueError(f"{op}: {name} is empty, got shape {list(pool.shape)}")
    if pool_dim == 3 and query_dim == 1:
        raise ValueError(
            f"{op}: {name} has a batch of {pool.shape[0]}, query has shape {list(query.shape)}"
        )
    if pool_dim == 3 and pool.shape[0] != query.shape[0]:
        raise ValueError(
            f"{op}: {name} has a batch of {pool.shape[0]}, query a batch of {query.shape[0]}"
        )


def check_candidates(op: str, candidates: object, query: Tensor) -> None:
    """Check candidates int64 [K] or [B, K], with a batch exactly if the query has one."""
    tensor = check_int64(op, "candidates", candidates, query)
    batch = query.shape[:1] if query.dim() > 1 else query.shape[:0]
    if tensor.dim() != len(batch) + 1 or tensor.shape[:-1] != batch:
        raise ValueError(
            f"{op}: candidates {list(tensor.shape)} and query {list(query.shape)} must both have "
            "the same batch or none"
        )
    if tensor.shape[-1] == 0:
        raise ValueError(f"{op}: candidates is empty, got shape {list(tensor.shape)}")


def check_sizes(op: str, name: str, sizes: object, query: Tensor) -> None:
    """Check ragged sizes, int64 [B]. The operator checks their values."""
    if sizes is None:
        return
    tensor = check_int64(op, name, sizes, query)
    if query.dim() == 1:
        raise ValueError(
            f"{op}: {name} needs a batch, query has shape {list(query.shape)}"
        )
    if tuple(tensor.shape) != (query.shape[0],):
        raise ValueError(
            f"{op}: {name} must have shape [{query.shape[0]}], got {list(tensor.shape)}"
        )


def check_storage(op: str, name: str, tensor: Tensor) -> None:
    """Refuse a meta tensor. The dispatcher would take the call for a question about shapes."""
    if tensor.is_meta:
        raise ValueError(f"{op}: {name} has no storage, it is on the meta device")


def check_gradient(op: str, i: int, param: Tensor, grad: object) -> None:
    """Check the gradient of parameter ``i``."""
    name = f"the gradient of parameter {i}"
    if not isinstance(grad, Tensor):
        raise no_tensor(op, name, grad)
    if grad.layout != torch.strided:
        advice = "call to_dense(), or use torch.optim.SparseAdam"
        raise TypeError(
            f"{op}: {name} must be dense, got layout {grad.layout}; {advice}"
        )
    check_storage(op, f"parameter {i}", param)
    if grad.device != param.device:
        raise ValueError(
            f"{op}: {name} is on {grad.device}, the parameter on {param.device}"
        )
    check_sharding(op, name, grad, i, param)


def check_state(op: str, i: int, param: Tensor, state: Mapping[str, object]) -> None:
    """Check the state of parameter ``i``, which anybody may have changed."""
    for key in ADAM_STATE:
        name = f"{key} of parameter {i}"
        if key not in state:
            raise ValueError(f"{op}: the state of parameter {i} has no {key}")
        tensor = state[key]
        if not isinstance(tensor, Tensor):
            raise no_tensor(op, name, tensor)
        check_storage(op, name, tensor)
        if key != "step":
            check_sharding(op, name, tensor, i, param)


def is_plain(tensors: Iterable[Tensor]) -> bool:
    """Whether none is of a subclass, such as DTensor."""
    return {*map(type, tensors)} <= {Tensor, torch.nn.Parameter}


def is_sharded(tensor: Tensor) -> bool:
    """Whether it is a DTensor. Does not import DTensor, which is slow: its users have loaded it."""
    return isinstance(
        tensor, getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", ())
    )


def check_sharding(op: str, name: str, tensor: Any, i: int, param: Any) -> None:
    """Refuse a tensor that is not laid out over the processes like parameter ``i``.

    It reads only layouts, which all processes know, so either all of them refuse or none.
    """
    if is_sharded(tensor) != is_sharded(param):
        came, own = (
            "a DTensor" if is_sharded(t) else "a plain tensor" for t in (tensor, param)
        )
        raise TypeError(f"{op}: {name} is {came}, the parameter {own}")
    if not is_sharded(param):
        return
    if any(placement.is_partial() for placement in param.placements):
        raise ValueError(
            f"{op}: parameter {i} must be sharded or replicated, got placements {param.placements}"
        )
    for what in ("shape", "device_mesh", "placements"):
        came, own = getattr(tensor, what), getattr(param, what)
        if came != own:
            raise ValueError(f"{op}: {name} has {what} {came}, the parameter {own}")


def adam_options(group: Mapping[str, Any], *, new: bool = False) -> dict[str, Any]:
    """The options of a parameter group of ReplayAdam, checked, as the operator takes them.

    As torch wants it, betas are alike in a new one. A schedule of momentum may mix them later.
    """
    for name in ("lr", "betas", "eps", "weight_decay"):
        if name not in group:
            raise ValueError(
                f"ReplayAdam: a parameter group must have {name!r}, got {list(group)}"
            )
    options: dict[str, Any] = {}
    for name in ("lr", "eps", "weight_decay"):
        options[name] = adam_number(name, group[name])
        if not 0 <= options[name] < _INF:
            raise ValueError(
                f"ReplayAdam: {name} must be finite and >= 0, got {options[name]}"
            )
    betas = group["betas"]
    if not isinstance(betas, Sequence) or len(betas) != 2:
        raise ValueError(f"ReplayAdam: betas must be two numbers, got {betas!r}")
    for i, beta in enumerate(betas):
        value = options[f"beta{i + 1}"] = adam_number(f"betas[{i}]", beta)
        if not 0 <= value < 1:
            raise ValueError(f"ReplayAdam: betas[{i}] must be in [0, 1), got {value}")
    if new and isinstance(betas[0], Tensor) != isinstance(betas[1], Tensor):
        kinds = " and ".join(type(beta).__name__ for beta in betas)
        raise ValueError(
            f"ReplayAdam: betas must be two numbers or two tensors, got {kinds}"
        )
    for name, option in (
        ("decoupled_weight_decay", "decoupled"),
        ("maximize", "maximize"),
    ):
        options[option] = group.get(name, False)
        if not isinstance(options[option], bool):
            raise TypeError(
                f"ReplayAdam: {name} must be a bool, got {type(group[name]).__name__}"
            )
    for name in ("foreach", "fused"):
        if not isinstance(group.get(name), bool | None):
            kind = type(group[name]).__name__
            raise TypeError(f"ReplayAdam: {name} must be a bool or None, got {kind}")
    if group.get("foreach") and group.get("fused"):
        raise ValueError("ReplayAdam: foreach and fused exclude each other, got both")
    for name in ("amsgrad", "differentiable"):
        if group.get(name):
            raise ValueError(f"ReplayAdam: {name} must be False, got {group[name]}")
    options["repeats"] = check_integer(
        "ReplayAdam", "repeats", group.get("repeats", 1), 1
    )
    options["seed"] = group.get("rounding_seed")
    if options["seed"] is not None:
        options["seed"] = check_integer(
            "ReplayAdam", "rounding_seed", options["seed"], 0
        )
    return options


def adam_number(name: str, value: object) -> float:
    if not isinstance(value, Tensor):
        return float(check_number("ReplayAdam", name, value))
    if value.numel() != 1:
        raise ValueError(
            f"ReplayAdam: {name} must have one element, got shape {list(value.shape)}"
        )
    if value.is_complex():
        raise TypeError(f"ReplayAdam: {name} must be a real number, got {value.dtype}")
    return float(value)
