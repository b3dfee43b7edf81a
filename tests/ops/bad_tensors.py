"""What adam_replay_ and grad_accumulate_ refuse."""

import math
from functools import partial

import torch

from adam_problems import AdamTensors, make_tensors

BadTensors = dict[str, tuple[str, AdamTensors]]


def bad_adam_tensors() -> BadTensors:
    """A message for each, and tensors of shapes [2, 3] and [4], some of them bad."""
    good = make_tensors([(2, 3), 4])
    return _unlike_the_others(good) | _bad_memory(good)


def _changed(
    good: AdamTensors, column: str, i: int, tensor: torch.Tensor
) -> AdamTensors:
    tensors = good.clone()
    getattr(tensors, column)[i] = tensor
    return tensors


def _unlike_the_others(good: AdamTensors) -> BadTensors:
    """Numbers of tensors, shapes, dtypes, devices and step counts."""
    changed = partial(_changed, good)
    return {
        "fewer gradients": (
            "grads has 1 tensors, params has 2",
            good._replace(grads=good.grads[:1]),
        ),
        "shape of a gradient": (
            r"grads\[0\] has shape \[3, 2\], params\[0\] has shape \[2, 3\]",
            changed("grads", 0, torch.zeros(3, 2)),
        ),
        "integer parameter": (
            r"params\[1\] must be float32, float64, bfloat16 or float16, got int64",
            changed("params", 1, torch.zeros(4, dtype=torch.int64)),
        ),
        "dtype of a moment": (
            r"exp_avgs\[0\] is float64, params\[0\] is float32",
            changed("exp_avgs", 0, torch.zeros(2, 3, dtype=torch.float64)),
        ),
        "two step counts": (
            r"steps\[1\] must hold one float32 or float64 value, got float32 of shape \[2\]",
            changed("steps", 1, torch.zeros(2)),
        ),
        "negative step count": (
            r"steps\[0\] must be finite and >= 0, got -1",
            changed("steps", 0, torch.tensor(-1.0)),
        ),
    }


def _bad_memory(good: AdamTensors) -> BadTensors:
    changed = partial(_changed, good)
    shrunk = torch.zeros(4)
    shrunk.untyped_storage().resize_(12)
    shared = torch.zeros(6)
    wide = torch.zeros(2, 20)
    return {
        "shrunk storage": (
            r"exp_avgs\[1\] needs 16 bytes of storage, it has 12",
            changed("exp_avgs", 1, shrunk),
        ),
        "overlapping parameters": (
            r"params\[1\] overlaps params\[0\] in memory",
            good._replace(params=[shared.view(2, 3), shared[2:]]),
        ),
        "interleaved parameters": (
            r"params\[1\] overlaps params\[0\] in memory",
            good._replace(params=[wide[:, :3], wide[0, 10:14]]),
        ),
        "expanded parameter": (
            r"params\[1\] overlaps itself in memory",
            changed("params", 1, torch.zeros(1).expand(4)),
        ),
        "gradient is the parameter": (
            r"(grads|params)\[.\] overlaps (grads|params)\[.\] in memory",
            good._replace(grads=good.params),
        ),
    }


def overlapping_step_counts() -> dict[str, AdamTensors]:
    """A message for each, and tensors; the second one's step count lies in another tensor."""
    good = make_tensors([3, 4])
    positive = torch.ones(4)
    steps = [torch.tensor(1.0), positive[3]]
    return {
        r"(steps|exp_avg_sqs)\[1\] overlaps (steps|exp_avg_sqs)\[1\]": good._replace(
            exp_avg_sqs=[good.exp_avg_sqs[0], positive], steps=steps
        ),
        r"(steps|grads)\[1\] overlaps (steps|grads)\[1\]": good._replace(
            grads=[good.grads[0], positive], steps=steps
        ),
    }


BAD_ADAM_OPTIONS = [
    (r"repeats must be in 1\.\.2147483647, got 0", {"repeats": 0}),
    ("lr must be finite .*got nan", {"lr": math.nan}),
    (r"lr must be finite in float32, got 1e\+39", {"lr": 1e39}),
    (
        "lr_scales must be contiguous float64 on the CPU, got float32 of shape .1. on cpu",
        {"lr_scales": torch.ones(1)},
    ),
    (
        "lr_scales must have 1 numbers, as params, got 2",
        {"lr_scales": torch.ones(2).double()},
    ),
    (
        r"lr_scales\[0\] must be finite and >= 0, got -1",
        {"lr_scales": -torch.ones(1).double()},
    ),
    (
        r"lr_scales\[0\] times lr must be finite in float32, got 1e\+39",
        {"lr": 1.0, "lr_scales": torch.tensor([1e39], dtype=torch.float64)},
    ),
]

BAD_RATES = [
    ("must hold one float32 or float64 value, got float32 of shape .2.", torch.ones(2)),
]


BAD_REPEATS = [
    ("must hold one int64 value, got int64 of shape .2.", torch.ones(2).long()),
    (r"must be in 1\.\.2147483647, got 0", torch.tensor(0)),
]


Tensors = list[torch.Tensor]


def bad_accumulations() -> dict[str, tuple[Tensors, Tensors, dict[str, float]]]:
    """Caches, gradients and factors, by the message for each."""
    cache = torch.zeros(4)
    grad = torch.zeros(4)
    shared = torch.zeros(6)
    return {
        "grads has 0 tensors, caches has 1": ([cache], [], {}),
        r"grads\[0\] has shape \[2, 2\], caches": ([cache], [grad.view(2, 2)], {}),
        r"caches\[0\] must be float32, .* got int64": ([cache.long()], [grad], {}),
        r"caches\[1\] overlaps caches\[0\]": ([shared[:4], shared[2:]], [grad] * 2, {}),
        r".*overlaps .*\[0\] in memory": ([cache], [cache], {}),
        "alpha must be finite.*, got nan": ([cache], [grad], {"alpha": math.nan}),
        r"alpha must be finite in float32, got 1e\+39": (
            [cache.double(), cache],
            [grad, grad],
            {"alpha": 1e39},
        ),
    }
