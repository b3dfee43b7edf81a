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
    optimizer_class = torch.optim.AdamW if o["decoupled"] else torch.optim.Adam
    optimizer = optimizer_class(
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

        for i, param in enumerate(params):
            path[i] = path[i] + (param.detach() - before[i]).abs()

    states = [optimizer.state[p] for p in params]
    after = AdamTensors(
        params=[p.detach() for p in params],
        grads=tensors.grads,
        exp_avgs=[state["exp_avg"] for state in states],
        exp_avg_sqs=[state["exp_avg_sq"] for state in states],
        steps=[state["step"] for state in states],
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
        pairs = zip(getattr(ours, name), getattr(wanted, name), strict=True)
        for i, (a, b) in enumerate(pairs):
            assert torch.equal(a, b), f"{name}[{i}]"
