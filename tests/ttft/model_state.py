"""Everything about a model, and about this thread, that an adaptation might leave changed."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
)


def _bytes(tensor: torch.Tensor | None) -> bytes | None:
    if tensor is None:
        return None

    flat = tensor.detach().contiguous().view(-1)
    return flat.view(torch.uint8).numpy().tobytes()


def thread_state() -> dict[str, object]:
    """Of torch in this thread."""
    torch.autocast_increment_nesting()
    return {
        "depth of autocast": torch.autocast_decrement_nesting(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "dtype of autocast": torch.get_autocast_dtype("cpu"),
        "cache of autocast": torch.is_autocast_cache_enabled(),
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "random numbers": _bytes(torch.get_rng_state()),
    }


def state_of(model: nn.Module) -> dict[str, object]:
    """By name, so that a comparison says what differs. Hooks of a test are to be gone by then."""
    found = thread_state()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        found[f"{name}: bytes"] = _bytes(parameter)
        found[f"{name}: place"] = parameter.data_ptr(), id(parameter), parameter.dtype
        found[f"{name}: requires_grad"] = parameter.requires_grad
        found[f"{name}: hooks"] = list(parameter._post_accumulate_grad_hooks or ())
        found[f"{name}: gradient"] = id(parameter.grad), _bytes(parameter.grad)

    for name, buffer in model.named_buffers(remove_duplicate=False):
        found[f"{name}: bytes"] = _bytes(buffer)
        found[f"{name}: place"] = buffer.data_ptr(), id(buffer)

    for name, module in model.named_modules():
        found[f"module {name}"] = id(module), type(module), module.training
        found[f"module {name}: forward"] = vars(module).get("forward")
        for kind in _HOOKS:
            found[f"module {name}: {kind}"] = list(getattr(module, kind, ()))

    return found


def differences(before: dict[str, object], after: dict[str, object]) -> list[str]:
    names = before.keys() | after.keys()
    return sorted(name for name in names if before.get(name) != after.get(name))


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Checks that the body leaves the model as it was."""
    before = state_of(model)
    yield
    changed = differences(before, state_of(model))

    assert not changed, changed
