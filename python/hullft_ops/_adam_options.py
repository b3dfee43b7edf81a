"""The options of ReplayAdam's parameter groups: their limits, and those that the operator takes."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from hullft_ops import _checks

# torch.optim.Adam's other options. Keeping them makes a state_dict work in both directions.
TORCH_OPTIONS = {
    "amsgrad": False,
    "foreach": None,
    "capturable": False,
    "differentiable": False,
    "fused": None,
}
_REQUIRED_OPTIONS = ("lr", "betas", "eps", "weight_decay")


def check_options(group: Mapping[str, Any]) -> None:
    for name in _REQUIRED_OPTIONS:
        if name not in group:
            raise ValueError(f"ReplayAdam: a parameter group must have {name!r}, got {list(group)}")
    for name in ("lr", "eps", "weight_decay"):
        value = _number(name, group[name])
        if not 0 <= value < float("inf"):
            raise ValueError(f"ReplayAdam: {name} must be finite and >= 0, got {value}")
    betas = group["betas"]
    if not isinstance(betas, Sequence) or len(betas) != 2:
        raise ValueError(f"ReplayAdam: betas must be two numbers, got {betas!r}")
    for i in range(2):
        value = _number(f"betas[{i}]", betas[i])
        if not 0 <= value < 1:
            raise ValueError(f"ReplayAdam: betas[{i}] must be in [0, 1), got {value}")
    if group.get("rounding_seed") is not None:
        _checks.check_integer("ReplayAdam", "rounding_seed", group["rounding_seed"], 0)
    for name in ("decoupled_weight_decay", "maximize"):
        if not isinstance(group.get(name, False), bool):
            raise TypeError(f"ReplayAdam: {name} must be a bool, got {type(group[name]).__name__}")
    for name in ("foreach", "fused"):
        if not isinstance(group.get(name), bool | None):
            kind = type(group[name]).__name__
            raise TypeError(f"ReplayAdam: {name} must be a bool or None, got {kind}")
    if group.get("foreach") and group.get("fused"):
        raise ValueError("ReplayAdam: foreach and fused exclude each other, got both")
    _repeats_of(group)
    for name in ("amsgrad", "differentiable"):
        if group.get(name):
            raise ValueError(f"ReplayAdam: {name} must be False, got {group[name]}")


def check_new_options(group: Mapping[str, Any]) -> None:
    """Check the options of a new group. Its betas are alike, as torch wants them.

    A schedule of momentum may mix them later.
    """
    check_options(group)
    betas = group["betas"]
    if isinstance(betas[0], Tensor) != isinstance(betas[1], Tensor):
        kinds = " and ".join(type(beta).__name__ for beta in betas)
        raise ValueError(f"ReplayAdam: betas must be two numbers or two tensors, got {kinds}")


def _repeats_of(group: Mapping[str, Any]) -> int:
    return _checks.check_integer("ReplayAdam", "repeats", group.get("repeats", 1), 1)


def _number(name: str, value: object) -> float:
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(
                f"ReplayAdam: {name} must have one element, got shape {list(value.shape)}"
            )
        if value.is_complex():
            raise TypeError(f"ReplayAdam: {name} must be a real number, got {value.dtype}")
        return float(value)
    return _checks.check_number("ReplayAdam", name, value)


def step_options(group: Mapping[str, Any], repeats: int | None, seed: int | None) -> dict[str, Any]:
    """The operator's options, checked again because anybody may have changed the group.

    ``repeats`` comes from the call; None takes the group's.
    """
    stays_on_device = group["capturable"] and isinstance(group["lr"], Tensor)
    lr = 0.0 if stays_on_device else _number("lr", group["lr"])
    check_options({**group, "lr": lr})
    beta1, beta2 = group["betas"]
    return {
        "repeats": _repeats_of(group) if repeats is None else repeats,
        "lr": float(lr),
        "beta1": float(beta1),
        "beta2": float(beta2),
        "eps": float(group["eps"]),
        "weight_decay": float(group["weight_decay"]),
        "decoupled": group["decoupled_weight_decay"],
        "maximize": group["maximize"],
        "lr_tensor": group["lr"] if stays_on_device else None,
        "seed": seed,
    }
