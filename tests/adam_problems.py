"""Adam problems, the peer that torch gives for them, and how far two answers may be apart."""

from typing import NamedTuple

import torch

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
        return AdamTensors(*([t.clone() for t in tensors] for tensors in self))


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
    exp_avg_sqs = [
        history * (2 * m**2 + 0.1 * g**2) for m, g in zip(exp_avgs, grads, strict=True)
    ]
    return AdamTensors(
        [t.to(dtype) for t in params],
        [t.to(grad_dtype or dtype) for t in grads],
        [t.to(dtype) for t in exp_avgs],
        [t.to(dtype) for t in exp_avg_sqs],
        [torch.tensor(steps_done) for _ in sizes],
    )


def adam_replay(tensors: AdamTensors, repeats: int, **options: object) -> AdamTensors:
    """What the operator makes of clones; the arguments stay as they are."""
    after = tensors.clone()
    OPS.adam_replay_(*after, repeats=repeats, **{**OPTIONS, **options})
    return after


class TorchAdam(NamedTuple):
    after: AdamTensors
    path: list[torch.Tensor]
    """How far each parameter travelled, and where it started: |p_0| + sum |p_t - p_{t-1}|."""


def torch_adam(
    tensors: AdamTensors, repeats: int, **options: float | bool
) -> TorchAdam:
    """``repeats`` steps of torch.optim.Adam, or of AdamW when decoupled."""
    o = {**OPTIONS, **options}
    params = [torch.nn.Parameter(p.clone()) for p in tensors.params]
    optimizer = (torch.optim.AdamW if o["decoupled"] else torch.optim.Adam)(
        params,
        lr=o["lr"],
        betas=(o["beta1"], o["beta2"]),
        eps=o["eps"],
        weight_decay=o["weight_decay"],
        maximize=bool(o["maximize"]),
    )
    for p, g, m, v, t in zip(params, *tensors.clone()[1:], strict=True):
        p.grad = g
        optimizer.state[p] = {"step": t, "exp_avg": m, "exp_avg_sq": v}
    path = [p.detach().abs() for p in params]
    for _ in range(repeats):
        before = [p.detach().clone() for p in params]
        optimizer.step()
        path = [
            s + (p.detach() - b).abs()
            for s, p, b in zip(path, params, before, strict=True)
        ]
    columns = zip(*(optimizer.state[p].values() for p in params), strict=True)
    steps, exp_avgs, exp_avg_sqs = (list(column) for column in columns)
    after = AdamTensors(
        [p.detach() for p in params], tensors.grads, exp_avgs, exp_avg_sqs, steps
    )
    return TorchAdam(after, path)


def assert_within(
    ours: torch.Tensor, wanted: torch.Tensor, bound: torch.Tensor
) -> None:
    """|ours - wanted| <= bound, element by element."""
    error = (ours.double() - wanted.double()).abs()
    excess = error - bound.double()
    assert not excess.gt(0).any(), (
        f"error {error[excess.argmax()]} above {bound[excess.argmax()]}"
    )
    assert torch.equal(ours.isnan(), wanted.isnan())


def assert_same_bits(ours: AdamTensors, wanted: AdamTensors) -> None:
    for name in ("params", "exp_avgs", "exp_avg_sqs", "steps"):
        for i, (a, b) in enumerate(
            zip(getattr(ours, name), getattr(wanted, name), strict=True)
        ):
            assert torch.equal(a, b), f"{name}[{i}]"
