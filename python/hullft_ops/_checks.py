"""Checks of the public functions' arguments, before any operator runs.

They read only shapes and dtypes, so errors are the same for CPU, CUDA, meta and fake tensors. The
operators check that all tensors are on one device, and check values (NaN, ragged sizes,
candidates) in the pass that reads them. csrc/host repeats what keeps a direct call of an operator
within its tensors' memory, and nothing else.
"""

import operator
import reprlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, Literal, get_args

import torch
from torch import Tensor

FLOAT_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
FLOATS = "float32, float64, bfloat16 or float16"
ADAM_STATE = ("exp_avg", "exp_avg_sq", "step")  # as the operator takes it
Variant = Literal["vanilla", "corrective"]
VARIANTS = get_args(Variant)
_INT32_MAX = 2**31 - 1
_INF = float("inf")
_TORCH_INTEGERS = (int, torch.SymInt)
# NumPy's integers are Integral but not int. Its floats are Real, but most are not float.
_INTEGERS = (*_TORCH_INTEGERS, Integral)
_NUMBERS = (float, int, Real)


def check_tensor(op: str, name: str, value: object) -> Tensor:
    if not isinstance(value, Tensor):
        kind = type(value).__name__
        advice = {
            "ndarray": "; torch.from_numpy(array) makes one that shares its memory",
            "list": f"; torch.tensor({name}) makes one",
        }
        raise TypeError(
            f"{op}: {name} must be a torch.Tensor, got {kind}{advice.get(kind, '')}"
        )
    if value.is_nested:
        raise TypeError(f"{op}: {name} must be dense, got a nested tensor")
    if value.layout != torch.strided:
        raise TypeError(f"{op}: {name} must be dense, got layout {value.layout}")
    return value


def check_dtype(
    op: str, name: str, value: object, dtypes: Sequence[torch.dtype], names: str
) -> None:
    dtype = check_tensor(op, name, value).dtype
    if dtype not in dtypes:
        raise TypeError(f"{op}: {name} must be {names}, got {dtype}")


def check_integers(op: str, name: str, value: object) -> Tensor:
    """The integers of any dtype as int64, which the operators take."""
    tensor = check_tensor(op, name, value)
    dtype = tensor.dtype
    if dtype.is_floating_point or dtype.is_complex or dtype == torch.bool:
        raise TypeError(f"{op}: {name} must be integers, got {dtype}")
    return tensor.long()


def check_same_dtype(
    op: str, name: str, value: object, like_name: str, like: Tensor
) -> None:
    dtype = check_tensor(op, name, value).dtype
    if dtype != like.dtype:
        raise TypeError(f"{op}: {name} is {dtype}, {like_name} is {like.dtype}")


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


def check_number(
    op: str,
    name: str,
    value: object,
    below: float = _INF,
    *,
    is_positive: bool = False,
) -> float:
    """A number >= 0, or ``is_positive`` > 0, finite or below a bound."""
    if isinstance(value, bool) or not isinstance(value, _NUMBERS):
        raise TypeError(f"{op}: {name} must be a number, got {type(value).__name__}")
    is_within = 0 <= value < below  # type: ignore[operator]  # not NaN; math.isfinite cannot be traced
    if not is_within or (is_positive and value == 0):
        least = "> 0" if is_positive else ">= 0"
        bounds = f"finite and {least}" if below == _INF else f"in [0, {below})"
        raise ValueError(f"{op}: {name} must be {bounds}, got {value}")
    return value  # type: ignore[return-value]


def check_text(op: str, name: str, value: object) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{op}: {name} must be a str, got {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{op}: {name} must be valid Unicode: {error}") from error


def check_variant(op: str, variant: object) -> str:
    if variant not in VARIANTS:
        raise ValueError(
            f"{op}: variant must be one of {', '.join(VARIANTS)}, got {variant!r}"
        )
    return str(variant)


def check_pool(
    op: str,
    name: str,
    pool: Tensor,
    query: Tensor,
    *,
    targets: bool = False,
    query_name: str = "query",
) -> None:
    """Check pool [K, d] or [B, K, d], and query [d], [B, d] or, for several targets, [B, m, d]."""
    check_dtype(op, name, pool, FLOAT_DTYPES, FLOATS)
    if pool.dim() not in (2, 3):
        raise ValueError(
            f"{op}: {name} must have shape [K, d] or [B, K, d], got {list(pool.shape)}"
        )
    check_same_dtype(op, query_name, query, name, pool)
    if not 1 <= query.dim() <= (3 if targets else 2):
        shapes = "[d], [B, d] or [B, m, d]" if targets else "[d] or [B, d]"
        raise ValueError(
            f"{op}: {query_name} must have shape {shapes}, got {list(query.shape)}"
        )
    if query.dim() == 3 and query.shape[1] == 0:
        raise ValueError(f"{op}: query has no targets, got shape {list(query.shape)}")
    *_, rows, dim = pool.shape
    if query.shape[-1] != dim:
        raise ValueError(
            f"{op}: {query_name} has dim {query.shape[-1]}, {name} has dim {dim}"
        )
    if rows == 0 or dim == 0:
        raise ValueError(f"{op}: {name} is empty, got shape {list(pool.shape)}")
    # Not len, which would fix the size of the batch for torch.export.
    if pool.dim() == 3 and (query.dim() == 1 or pool.shape[0] != query.shape[0]):
        raise ValueError(
            f"{op}: {name} has a batch of {pool.shape[0]}, {query_name} has shape "
            f"{list(query.shape)}"
        )


def check_gram(op: str, gram: Any, products: Any, square: Any) -> None:
    """Check gram [K, K] or [B, K, K], products [K] or [B, K], and square, one value a query."""
    check_pool(op, "gram", gram, products, query_name="products")
    if gram.shape[-1] != gram.shape[-2]:
        raise ValueError(f"{op}: gram must be square, got shape {list(gram.shape)}")
    if square is None:
        return
    check_same_dtype(op, "square", square, "gram", gram)
    if square.shape != products.shape[:-1]:
        raise ValueError(
            f"{op}: square must have shape {list(products.shape[:-1])}, got "
            f"{list(square.shape)}"
        )


def check_candidates(
    op: str, candidates: Tensor | None, pool: Tensor, query: Tensor
) -> Tensor | None:
    """Candidates [K] or [B, K], rows of a pool [M, d], as int64.

    They have a batch exactly if the query has one. The operator checks their values.
    """
    if candidates is None:
        return None
    candidates = check_integers(op, "candidates", candidates)
    if pool.dim() != 2:
        raise ValueError(
            f"{op}: pool must have shape [M, d] with candidates, got {list(pool.shape)}"
        )
    batch = query.shape[:1] if query.dim() > 1 else query.shape[:0]
    if candidates.dim() != len(batch) + 1 or candidates.shape[:-1] != batch:
        raise ValueError(
            f"{op}: candidates {list(candidates.shape)} and query {list(query.shape)} must both "
            "have the same batch or none"
        )
    if candidates.shape[-1] == 0:
        raise ValueError(
            f"{op}: candidates is empty, got shape {list(candidates.shape)}"
        )
    return candidates


def check_sizes(
    op: str, name: str, sizes: Tensor | None, query: Tensor
) -> Tensor | None:
    """Ragged sizes [B] as int64. The operator checks their values."""
    if sizes is None:
        return None
    sizes = check_integers(op, name, sizes)
    if query.dim() == 1:
        raise ValueError(
            f"{op}: {name} needs a batch, query has shape {list(query.shape)}"
        )
    if sizes.shape != query.shape[:1]:
        raise ValueError(
            f"{op}: {name} must have shape [{query.shape[0]}], got {list(sizes.shape)}"
        )
    return sizes


def check_params(op: str, params: Sequence[Tensor]) -> None:
    """Check the parameters of an optimizer's group or of a cache."""
    first: dict[Tensor, int] = {}
    for i, param in enumerate(params):
        check_dtype(op, f"params[{i}]", param, FLOAT_DTYPES, FLOATS)
        if first.setdefault(param, i) != i:
            raise ValueError(f"{op}: params[{i}] is params[{first[param]}] again")


def check_gradient(op: str, i: int, param: Tensor, grad: object) -> None:
    """Check parameter ``i`` and its gradient."""
    name = f"the gradient of parameter {i}"
    grad = check_tensor(op, name, grad)
    if param.is_meta:  # the dispatcher would take the call for a question about shapes
        raise ValueError(
            f"{op}: parameter {i} has no storage, it is on the meta device"
        )
    check_sharding(op, name, grad, i, param)


def check_state(op: str, i: int, param: Tensor, state: Mapping[str, object]) -> None:
    """Check the state of parameter ``i``, which anybody may have changed."""
    for key in ADAM_STATE:
        name = f"{key} of parameter {i}"
        tensor = check_tensor(op, name, state.get(key))
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
        kind, param_kind = type(tensor).__name__, type(param).__name__
        raise TypeError(f"{op}: {name} is a {kind}, the parameter a {param_kind}")
    if not is_sharded(param):
        return
    if any(placement.is_partial() for placement in param.placements):
        raise ValueError(
            f"{op}: parameter {i} must be sharded or replicated, got placements {param.placements}"
        )
    for attribute in ("shape", "device_mesh", "placements"):
        value, expected = getattr(tensor, attribute), getattr(param, attribute)
        if value != expected:
            raise ValueError(
                f"{op}: {name} has {attribute} {value}, the parameter {expected}"
            )


def adam_options(group: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a parameter group of ReplayAdam, checked, as the operator takes them."""
    for name in ("lr", "betas", "eps", "weight_decay"):
        if name not in group:
            raise ValueError(
                f"ReplayAdam: a parameter group must have {name!r}, got {list(group)}"
            )
    for name in ("amsgrad", "differentiable"):
        if group.get(name):
            raise ValueError(f"ReplayAdam: {name} must be False, got {group[name]}")
    betas = group["betas"]
    if not isinstance(betas, Sequence) or len(betas) != 2:
        raise ValueError(f"ReplayAdam: betas must be two numbers, got {betas!r}")
    lr, lr_tensor = group["lr"], None
    if group.get("capturable") and isinstance(lr, Tensor):
        lr, lr_tensor = 0.0, lr  # the operator reads it where it is
    seed = group.get("rounding_seed")
    if seed is not None:
        seed = check_integer("ReplayAdam", "rounding_seed", seed, 0)
    return {
        "lr": _adam_number("lr", lr),
        "lr_tensor": lr_tensor,
        "beta1": _adam_number("betas[0]", betas[0], below=1),
        "beta2": _adam_number("betas[1]", betas[1], below=1),
        "eps": _adam_number("eps", group["eps"]),
        "weight_decay": _adam_number("weight_decay", group["weight_decay"]),
        "decoupled": bool(group.get("decoupled_weight_decay")),
        "maximize": bool(group.get("maximize")),
        "repeats": check_integer("ReplayAdam", "repeats", group.get("repeats", 1), 0),
        "seed": seed,
    }


def check_lr_scales(group: Mapping[str, Any]) -> None:
    """Check that option of a parameter group of ReplayAdam, a number for each parameter."""
    scales, count = group.get("lr_scales"), len(group["params"])
    if scales is None:
        return
    is_right = (
        isinstance(scales, Sequence)
        and len(scales) == count
        and all(isinstance(s, float | int) and 0 <= s < _INF for s in scales)
    )
    if not is_right:
        raise ValueError(
            f"ReplayAdam: lr_scales must be {count} finite numbers >= 0, one for each parameter, "
            f"got {reprlib.repr(scales)}"
        )


def _adam_number(name: str, value: object, below: float = _INF) -> float:
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(
                f"ReplayAdam: {name} must have one element, got shape {list(value.shape)}"
            )
        value = value.item()
    return float(check_number("ReplayAdam", name, value, below))
