"""Adam problems, the peer that torch gives for them, and how far two answers may be apart."""

from typing import NamedTuple

import torch

from hullft_ops import reference

OPS = torch.ops.hullft_ops
OPTIONS: dict[str, float | bool] = {
    "lr": 1e-3,
    "beta1": 0.9,
    "beta2": 0.999,
    "eps": 1e-8,
    "weight_decay": 0.0,
    "decoupled": False,
    "maximize": False,
}


class AdamTensors(NamedTuple):
    params: list[torch.Tensor]
    grads: list[torch.Tensor]
    exp_avgs: list[torch.Tensor]
    exp_avg_sqs: list[torch.Tensor]
    steps: list[torch.Tensor]

    def clone(self) -> "AdamTensors":
        columns = []
        for tensors in self:
            columns.append([tensor.clone() for tensor in tensors])

        return AdamTensors(*columns)


def make_tensors(
    sizes: list[int] | list[tuple[int, ...]],
    dtype: torch.dtype = torch.float32,
    *,
    grad_dtype: torch.dtype | None = None,
    steps_done: float = 0.0,
    seed: int = 0,
) -> AdamTensors:
    """Parameters about 0.1, gradients about 1, and moments as steps_done such steps leave them."""
    generator = torch.Generator().manual_seed(seed)

    def normal(size: int | tuple[int, ...]) -> torch.Tensor:
        shape = (size,) if isinstance(size, int) else size
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    params = [0.1 * normal(size) for size in sizes]
    grads = [normal(size) for size in sizes]
    history = 1.0 if steps_done else 0.0
    exp_avgs = [history * 0.3 * normal(size) for size in sizes]
    exp_avg_sqs = []
    for m, g in zip(exp_avgs, grads, strict=True):
        exp_avg_sqs.append(history * (2 * m**2 + 0.1 * g**2))

    return AdamTensors(
        params=[t.to(dtype) for t in params],
        grads=[t.to(grad_dtype or dtype) for t in grads],
        exp_avgs=[t.to(dtype) for t in exp_avgs],
        exp_avg_sqs=[t.to(dtype) for t in exp_avg_sqs],
        steps=[torch.tensor(steps_done) for _ in sizes],
    )


def adam_replay(tensors: AdamTensors, repeats: int, **options: object) -> AdamTensors:
    """What the operator makes of clones; the arguments stay as they are."""
    after = tensors.clone()
    OPS.adam_replay_(*after, repeats=repeats, **{**OPTIONS, **options})
    return after


def assert_near_reference(
    tensors: AdamTensors, repeats: int, **options: float | bool
) -> AdamTensors:
    """What the operator makes of clones: as exact as its arithmetic, and rounded once.

    Errors are relative to how far a parameter started from zero and travelled, since it may end
    near zero; errors of moments to the moments' largest value so far.
    """
    after = adam_replay(tensors, repeats, **options)
    dtype = tensors.params[0].dtype
    arithmetic = torch.float64 if dtype == torch.float64 else torch.float32
    unit = (8 + repeats) * torch.finfo(arithmetic).eps
    rounding = torch.finfo(dtype).eps / 2 if dtype.itemsize == 2 else 0.0
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    options = {**OPTIONS, **options}
    for before, row in zip(
        zip(*tensors, strict=True), zip(*after, strict=True), strict=True
    ):
        param, grad, exp_avg, exp_avg_sq, count = exact = before
        path = param.double().abs()
        for _ in range(repeats):
            start = exact[0]
            exact = reference.adam_replay(
                start, grad, *exact[-3:], repeats=1, **options
            )
            path = path + (exact.param - start).abs() + options["lr"]

        gradient = grad.double().abs() + options["weight_decay"] * path
        scales = path, gradient + exp_avg.abs(), gradient**2 + exp_avg_sq
        for value, wanted, scale in zip(
            (row[0], *row[2:4]), exact[:3], scales, strict=True
        ):
            bound = rounding * wanted.abs() + unit * scale + smallest
            excess = (value.double() - wanted).abs() - bound

            assert value.dtype == dtype
            assert not excess.gt(0).any(), f"{excess.max()} above the bound"
            assert torch.equal(value.isfinite(), wanted.isfinite())

        assert row[4].dtype == count.dtype
        assert row[4].item() == count.item() + repeats

    return after


def assert_same_bits(ours: AdamTensors, wanted: AdamTensors) -> None:
    for name in ("params", "exp_avgs", "exp_avg_sqs", "steps"):
        pairs = zip(getattr(ours, name), getattr(wanted, name), strict=True)
        for i, (a, b) in enumerate(pairs):
            assert torch.equal(a, b), f"{name}[{i}]"
