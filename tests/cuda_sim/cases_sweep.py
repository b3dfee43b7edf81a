"""The sweeps over lists of tensors: adam_replay_ and grad_accumulate_."""

import torch

from adam_problems import OPTIONS, AdamTensors, assert_same_bits, make_tensors
from cuda_sim.checks import case
from cuda_sim.library import Launch, Library
from hullft_ops import reference

F16 = torch.float16
F32 = torch.float32
F64 = torch.float64
B16 = torch.bfloat16
SWEEP_SIZES = [0, 1, 7, 8, 9, 0, 255, 2048, 2049, 16_385, 0]
"""Elements: around a thread's share, a tile and a block's chunk, with empty tensors anywhere."""


def adam_tolerance(dtype: torch.dtype) -> float:
    """Relative, of parameters about 0.1 after steps of about 1e-3."""
    tolerances = {F64: 1e-14, F32: 4e-7, B16: 4e-3, F16: 5e-4}
    return tolerances[dtype]


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
    device_lr: torch.Tensor | None = None,
    step_dtype: torch.dtype = torch.float32,
    misalign: int = 0,
    **options: float | bool | list[float],
) -> None:
    tensors = make_tensors(sizes, dtype, grad_dtype=grad_dtype, steps_done=steps_done)
    steps = [count.to(step_dtype) for count in tensors.steps]
    tensors = tensors._replace(steps=steps)
    all_options = OPTIONS | options
    lr = all_options["lr"] if device_lr is None else device_lr.item()
    scales = all_options.pop("lr_scales", [1.0] * len(sizes))
    expected = []
    for *row, scale in zip(*tensors, scales, strict=True):
        rates = all_options | {"lr": lr * scale}
        expected.append(reference.adam_replay(*row, repeats=repeats, **rates))

    params, exp_avgs, exp_avg_sqs, _ = zip(*expected, strict=True)

    got = tensors.clone()
    library.adam_replay_(
        got,
        repeats,
        device_steps=device_steps,
        device_lr=device_lr,
        misalign=misalign,
        launch=launch,
        **options,
    )
    tolerance = adam_tolerance(dtype)

    check_near(got.params, params, tolerance)
    check_near(got.exp_avgs, exp_avgs, tolerance)
    check_near(got.exp_avg_sqs, exp_avg_sqs, tolerance)
    if device_steps:
        for count in got.steps:
            assert count.item() == steps_done + repeats


def check_near(
    values: list[torch.Tensor], expected: tuple[torch.Tensor, ...], tolerance: float
) -> None:
    for value, exact in zip(values, expected, strict=True):
        error = (value.double() - exact).abs()
        assert (error <= tolerance * (exact.abs() + 0.1)).all()


@case
def adam(library: Library, seed: int) -> None:
    launch = Launch(seed)
    check_adam(library, F32, F32, SWEEP_SIZES, 2, launch)

    late = {"steps_done": 1000.0, "weight_decay": 0.1}
    scales = {"lr_scales": [1.0, 0.5, 3.0, 0.0, 2.0, 1.0]}
    check_adam(library, F64, F64, SWEEP_SIZES[:6], 3, launch, **late, **scales)

    adamw = {"decoupled": True, "weight_decay": 0.1}
    check_adam(library, B16, F32, SWEEP_SIZES[:7], 1, launch, **adamw)
    check_adam(library, F16, B16, [40, 9], 7, launch, maximize=True)
    check_adam(library, F32, F64, [33], 2, launch, beta1=0.0)
    # Whole tiles, which are read in words where the words are aligned.
    check_adam(library, F64, B16, [33, 1100], 2, launch, misalign=1)
    check_adam(library, F32, F16, [33, 2100], 2, launch, misalign=3)


@case
def adam_many_steps(library: Library, seed: int) -> None:
    """More steps than the table in shared memory holds."""
    for repeats in (64, 65, 130):
        check_adam(library, F64, F64, [5, 1030], repeats, Launch(seed))


@case
def adam_device_steps(library: Library, seed: int) -> None:
    for steps_done, step_dtype in ((0.0, F32), (1000.0, F32), (7.0, F64)):
        check_adam(
            library,
            F32,
            F32,
            [3, 0, 50],
            3,
            Launch(seed),
            steps_done=steps_done,
            device_steps=True,
            step_dtype=step_dtype,
        )

    shared = make_tensors([2] * 60)  # more than one launch takes
    shared = shared._replace(steps=shared.steps[:1] * 60)
    library.adam_replay_(shared, 3, device_steps=True, launch=Launch(seed))

    assert shared.steps[0].item() == 3


@case
def adam_device_repeats(library: Library, seed: int) -> None:
    """A number of steps on the device takes the place of the one in the launch. Blocks are smaller
    then, and one tensor has two."""
    options = {"device_steps": True, "launch": Launch(seed)}

    for dtype, repeats in ((F32, 1), (B16, 8), (F64, 65)):
        expected = make_tensors([3, 0, 4100], dtype, steps_done=5.0)
        got = expected.clone()
        library.adam_replay_(expected, repeats, **options)
        library.adam_replay_(
            got,
            7,
            device_repeats=torch.tensor(repeats),
            **options,
        )

        assert_same_bits(got, expected)


@case
def adam_device_lr(library: Library, seed: int) -> None:
    """A learning rate on the device takes the place of the one in the launch."""
    options = {"weight_decay": 0.1, "decoupled": True, "lr_scales": [0.5, 1.0, 3.0]}
    for dtype in (F32, F64):
        rate = torch.tensor(4e-3, dtype=dtype)
        sizes, launch = [3, 0, 50], Launch(seed)
        check_adam(library, F32, F32, sizes, 3, launch, device_lr=rate, **options)


@case
def adam_stochastic(library: Library, seed: int) -> None:
    """Parameters rounded as the reference rounds what the same steps give in float32."""
    key = 2**40 + 17
    launch = Launch(seed)

    for grad_dtype, device_steps, misalign in ((B16, False, 0), (F32, True, 1)):
        tensors = make_tensors(
            [9, 0, 2060],
            B16,
            grad_dtype=grad_dtype,
            steps_done=300.0,
        )
        wide = tensors.clone()._replace(
            params=[t.float() for t in tensors.params],
            exp_avgs=[t.float() for t in tensors.exp_avgs],
            exp_avg_sqs=[t.float() for t in tensors.exp_avg_sqs],
        )
        library.adam_replay_(wide, 2, launch=launch)
        got = tensors.clone()
        library.adam_replay_(
            got,
            2,
            seed=key,
            device_steps=device_steps,
            misalign=misalign,
            launch=launch,
        )

        for i, value in enumerate(wide.params):
            rounded = reference.round_to_bfloat16(
                value,
                seed=key,
                tensor=i,
                steps_done=300,
            )

            assert torch.equal(got.params[i], rounded)


NUMBERS = [
    0.0,
    -0.0,
    1.0,
    -3.7,
    2**-81,
    2**-126,
    -(2**-149),
    2.9e-37,
    2.1e11,
    3e38,
    float("inf"),
    float("nan"),
    1 - 2**-24,
    2**-80,
]
SQUARES = [
    *map(abs, NUMBERS),
    -1.0,
    2**-141,
    2**-142,
    3.3e-31,
    1e22,
    7e22,
    1e23,
]
EPSILONS = [
    (1e-8, 0.0),
    (0.0, 0.0),
    (2.0**-50, 0.0),
    (2.0**-45, 0.0),
    (1e10, 0.0),
    (1e30, 0.0),
    (1e-8, 0.5),
    (2 - 2.0**-22, 0.0),
    (2 - 2.0**-23, 0.0),
]
"""eps and weight decay."""


def moments() -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers of any size, alone in a thread and among others."""
    generator = torch.Generator().manual_seed(0)
    exponents = torch.rand(2, 900, generator=generator) * 240 - 120
    wide = exponents.exp2()
    usual = 1e-4 * torch.randn(2, 600, generator=generator)
    pairs = torch.cartesian_prod(torch.tensor(NUMBERS), torch.tensor(SQUARES))
    first, second = pairs.unbind(1)

    m = [first, wide[0], usual[0], first.repeat_interleave(8)]
    v = [second, wide[1], usual[1].square(), second.repeat_interleave(8)]
    return torch.cat(m), torch.cat(v)


@case
def adam_directions(library: Library, seed: int) -> None:
    """Quotients: all moments stay as they are, and the parameter becomes the direction."""
    m, v = moments()
    keep = 1 - 2.0**-30  # what it leaves of a float32 is that

    for eps, decay in EPSILONS:
        tensors = AdamTensors(
            params=[-torch.zeros_like(m)],
            grads=[torch.zeros_like(m)],
            exp_avgs=[m.clone()],
            exp_avg_sqs=[v.clone()],
            steps=[torch.tensor(1e12)],
        )
        library.adam_replay_(
            tensors,
            1,
            lr=1.0,
            beta1=keep,
            beta2=keep,
            eps=eps,
            weight_decay=decay,
            launch=Launch(seed),
        )

        assert torch.equal(tensors.exp_avg_sqs[0].nan_to_num(), v.nan_to_num())

        # torch rounds the root of a float32 otherwise now and then.
        root = v.double().sqrt().float()
        got = tensors.params[0]
        expected = -(tensors.exp_avgs[0] / (root + eps))

        assert torch.equal(got.isnan(), expected.isnan())

        number = ~expected.isnan()
        bits = got[number].view(torch.int32)

        assert torch.equal(bits, expected[number].view(torch.int32))


@case
def adam_many_tensors(library: Library, seed: int) -> None:
    """More tensors than one launch takes, with a rest that does not fill another."""
    sizes = [0 if i % 7 == 3 else 1 + i % 5 for i in range(150)]
    check_adam(library, F32, F32, sizes, 1, Launch(seed), device_steps=True)


ACCUMULATIONS = (
    (F32, F32, SWEEP_SIZES, 1.0, 0),
    (B16, F32, [300, 5], 0.5, 0),
    (F16, F64, [9, 2050], -2.0, 1),
    (F64, B16, [33], 0.0, 0),
    (F32, F32, [2] * 20, 1.0, 3),
)
"""Dtypes of cache and gradient, sizes, beta, and elements off the alignment."""


@case
def accumulate(library: Library, seed: int) -> None:
    generator = torch.Generator().manual_seed(0)

    def normal(sizes: list[int], dtype: torch.dtype) -> list[torch.Tensor]:
        return [torch.randn(n, generator=generator).to(dtype) for n in sizes]

    tolerances = {F64: 1e-15, F32: 2e-7, F16: 1e-3, B16: 8e-3}
    for cache_dtype, grad_dtype, sizes, beta, misalign in ACCUMULATIONS:
        caches = normal(sizes, cache_dtype)
        grads = normal(sizes, grad_dtype)
        if beta == 0:
            caches[0][0] = float("nan")

        expected = []
        for cache, grad in zip(caches, grads, strict=True):
            total = reference.grad_accumulate(cache, grad, alpha=0.7, beta=beta)
            expected.append(total)

        library.accumulate_(
            caches,
            grads,
            0.7,
            beta,
            misalign=misalign,
            launch=Launch(seed),
        )

        for got, exact in zip(caches, expected, strict=True):
            error = (got.double() - exact).abs()
            bound = tolerances[cache_dtype] * (exact.abs() + 1)

            assert (error <= bound).all()
