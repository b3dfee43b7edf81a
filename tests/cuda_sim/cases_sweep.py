"""The sweeps over lists of tensors: adam_replay_ and grad_accumulate_."""

import torch

from adam_problems import OPTIONS, AdamTensors, make_tensors
from cuda_sim.checks import case
from cuda_sim.library import Launch, Library
from hullft_ops import reference

SWEEP_SIZES = [0, 1, 7, 8, 9, 0, 255, 2048, 2049, 16_385, 0]
"""Elements: around a thread's share, a tile and a block's chunk, with empty tensors anywhere."""


def adam_tolerance(dtype: torch.dtype) -> float:
    """Relative, of parameters about 0.1 after steps of about 1e-3."""
    return {torch.float64: 1e-14, torch.float32: 4e-7, torch.bfloat16: 4e-3}.get(
        dtype, 5e-4
    )


def check_adam(
    library: Library,
    dtype: torch.dtype,
    grad_dtype: torch.dtype,
    sizes: list[int],
    repeats: int,
    launch: Launch,
    *,
    steps_done: float = 0.0,
    device_steps: bool = False,
    step_dtype: torch.dtype = torch.float32,
    misalign: int = 0,
    **options: float | bool,
) -> None:
    tensors = make_tensors(sizes, dtype, grad_dtype=grad_dtype, steps_done=steps_done)
    tensors = tensors._replace(steps=[t.to(step_dtype) for t in tensors.steps])
    expected = reference.adam_replay(*tensors, repeats=repeats, **(OPTIONS | options))
    got = tensors.clone()
    library.adam_replay_(
        got,
        repeats,
        device_steps=device_steps,
        misalign=misalign,
        launch=launch,
        **options,
    )
    tolerance = adam_tolerance(dtype)
    for column in ("params", "exp_avgs", "exp_avg_sqs"):
        for value, wanted in zip(
            getattr(got, column), getattr(expected, column), strict=True
        ):
            error = (value.double() - wanted).abs()
            assert (error <= tolerance * (wanted.abs() + 0.1)).all(), column
    if device_steps:
        assert [t.item() for t in got.steps] == [steps_done + repeats] * len(sizes)


@case
def adam(library: Library, seed: int) -> None:
    f16, f32, f64, b16 = torch.float16, torch.float32, torch.float64, torch.bfloat16
    launch = Launch(seed)
    check_adam(library, f32, f32, SWEEP_SIZES, 2, launch)
    check_adam(
        library,
        f64,
        f64,
        SWEEP_SIZES[:6],
        3,
        launch,
        steps_done=1000.0,
        weight_decay=0.1,
    )
    check_adam(
        library, b16, f32, SWEEP_SIZES[:7], 1, launch, decoupled=True, weight_decay=0.1
    )
    check_adam(library, f16, b16, [40, 9], 7, launch, maximize=True)
    check_adam(library, f32, f64, [33], 2, launch, beta1=0.0)
    # Whole tiles, which are read in words where the words are aligned.
    check_adam(library, f64, b16, [33, 1100], 2, launch, misalign=1)
    check_adam(library, f32, f16, [33, 2100], 2, launch, misalign=3)


@case
def adam_many_steps(library: Library, seed: int) -> None:
    """More steps than the table in shared memory holds."""
    for repeats in (64, 65, 130):
        check_adam(
            library, torch.float64, torch.float64, [5, 1030], repeats, Launch(seed)
        )


@case
def adam_device_steps(library: Library, seed: int) -> None:
    for steps_done, step_dtype in (
        (0.0, torch.float32),
        (1000.0, torch.float32),
        (7.0, torch.float64),
    ):
        check_adam(
            library, torch.float32, torch.float32, [3, 0, 50], 3, Launch(seed),
            steps_done=steps_done, device_steps=True, step_dtype=step_dtype,
        )  # fmt: skip
    shared = make_tensors([2] * 60)  # more than one launch takes
    shared = shared._replace(steps=shared.steps[:1] * 60)
    library.adam_replay_(shared, 3, device_steps=True, launch=Launch(seed))
    assert shared.steps[0].item() == 3


@case
def adam_device_lr(library: Library, seed: int) -> None:
    """A learning rate on the device takes the place of the one in the launch."""
    tensors = make_tensors([3, 0, 50])
    options = OPTIONS | {"weight_decay": 0.1, "decoupled": True}
    for dtype in (torch.float32, torch.float64):
        rate = torch.tensor(4e-3, dtype=dtype)
        expected = reference.adam_replay(
            *tensors, repeats=3, **(options | {"lr": rate})
        )
        got = tensors.clone()
        library.adam_replay_(got, 3, device_lr=rate, launch=Launch(seed), **options)
        for value, wanted in zip(got.params, expected.params, strict=True):
            assert (
                (value.double() - wanted).abs() <= 4e-7 * (wanted.abs() + 0.1)
            ).all()


@case
def adam_stochastic(library: Library, seed: int) -> None:
    """Parameters rounded as the reference rounds what the same steps give in float32."""
    for grad_dtype, device_steps, misalign in (
        (torch.bfloat16, False, 0),
        (torch.float32, True, 1),
    ):
        tensors = make_tensors(
            [9, 0, 2060], torch.bfloat16, grad_dtype=grad_dtype, steps_done=300.0
        )
        wide = tensors.clone()._replace(
            params=[t.float() for t in tensors.params],
            exp_avgs=[t.float() for t in tensors.exp_avgs],
            exp_avg_sqs=[t.float() for t in tensors.exp_avg_sqs],
        )
        launch = Launch(seed)
        library.adam_replay_(wide, 2, launch=launch)
        got = tensors.clone()
        library.adam_replay_(
            got,
            2,
            seed=2**40 + 17,
            device_steps=device_steps,
            misalign=misalign,
            launch=launch,
        )
        for i, value in enumerate(wide.params):
            wanted = reference.round_to_bfloat16(
                value, seed=2**40 + 17, tensor=i, steps_done=300
            )
            assert torch.equal(got.params[i], wanted)


@case
def adam_directions(library: Library, seed: int) -> None:
    """Quotients of numbers of any size, alone in a thread and among others: all moments stay as
    they are, and the parameter becomes the direction."""
    numbers = [0.0, -0.0, 1.0, -3.7, 2**-81, 2**-126, -(2**-149), 2.9e-37, 2.1e11, 3e38]
    numbers += [float("inf"), float("nan"), 1 - 2**-24, 2**-80]
    squares = [
        *(abs(x) for x in numbers),
        -1.0,
        2**-141,
        2**-142,
        3.3e-31,
        1e22,
        7e22,
        1e23,
    ]
    generator = torch.Generator().manual_seed(0)
    wide = (torch.rand(2, 900, generator=generator) * 240 - 120).exp2()
    usual = 1e-4 * torch.randn(2, 600, generator=generator)
    pairs = torch.cartesian_prod(torch.tensor(numbers), torch.tensor(squares))
    m, v = (
        torch.cat(
            [
                pairs[:, i],
                wide[i],
                usual[i].pow(1 + i),
                pairs[:, i].repeat_interleave(8),
            ]
        )
        for i in range(2)
    )
    keep = 1 - 2.0**-30  # what it leaves of a float32 is that
    for eps, decay in (
        (1e-8, 0.0), (0.0, 0.0), (2.0**-50, 0.0), (2.0**-45, 0.0), (1e10, 0.0), (1e30, 0.0),
        (1e-8, 0.5), (2 - 2.0**-22, 0.0), (2 - 2.0**-23, 0.0),
    ):  # fmt: skip
        tensors = AdamTensors(
            [-torch.zeros_like(m)], [torch.zeros_like(m)], [m.clone()], [v.clone()],
            [torch.tensor(1e12)],
        )  # fmt: skip
        library.adam_replay_(
            tensors, 1, lr=1.0, beta1=keep, beta2=keep, eps=eps, weight_decay=decay,
            launch=Launch(seed),
        )  # fmt: skip
        root = (
            v.double().sqrt().float()
        )  # torch rounds that of float32 otherwise now and then
        got, wanted = tensors.params[0], -(tensors.exp_avgs[0] / (root + eps))
        assert torch.equal(tensors.exp_avg_sqs[0].nan_to_num(), v.nan_to_num())
        assert torch.equal(got.isnan(), wanted.isnan())
        number = ~wanted.isnan()
        assert torch.equal(
            got[number].view(torch.int32), wanted[number].view(torch.int32)
        )


@case
def adam_many_tensors(library: Library, seed: int) -> None:
    """More tensors than one launch takes, with a rest that does not fill another."""
    sizes = [0 if i % 7 == 3 else 1 + i % 5 for i in range(150)]
    check_adam(
        library, torch.float32, torch.float32, sizes, 1, Launch(seed), device_steps=True
    )


@case
def accumulate(library: Library, seed: int) -> None:
    generator = torch.Generator().manual_seed(0)

    def normal(sizes: list[int], dtype: torch.dtype) -> list[torch.Tensor]:
        return [torch.randn(n, generator=generator).to(dtype) for n in sizes]

    f16, f32, f64, b16 = torch.float16, torch.float32, torch.float64, torch.bfloat16
    for cache_dtype, grad_dtype, sizes, beta, misalign in (
        (f32, f32, SWEEP_SIZES, 1.0, 0),
        (b16, f32, [300, 5], 0.5, 0),
        (f16, f64, [9, 2050], -2.0, 1),
        (f64, b16, [33], 0.0, 0),
        (f32, f32, [2] * 20, 1.0, 3),
    ):
        caches, grads = normal(sizes, cache_dtype), normal(sizes, grad_dtype)
        if beta == 0:
            caches[0][0] = float("nan")
        expected = reference.grad_accumulate(caches, grads, alpha=0.7, beta=beta)
        library.accumulate_(
            caches, grads, 0.7, beta, misalign=misalign, launch=Launch(seed)
        )
        tolerance = {f64: 1e-15, f32: 2e-7, f16: 1e-3, b16: 8e-3}[cache_dtype]
        for got, wanted in zip(caches, expected, strict=True):
            assert (
                (got.double() - wanted).abs() <= tolerance * (wanted.abs() + 1)
            ).all()
