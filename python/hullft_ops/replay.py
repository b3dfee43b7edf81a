"""Reusing a gradient: Adam that takes several steps with one.

An example of multiplicity c is trained on c times, but its gradient is recomputed only every few
steps and applied again in between (Gradient Reuse: Khamis and Maalouf, *Efficient Test-Time
Finetuning of LLMs via Convex Reconstruction and Gradient Caching*, arXiv:2605.30337). Consecutive
steps with one gradient are one sweep over memory here, whatever their number.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from hullft_ops import _checks
from hullft_ops import _ops as ops
from hullft_ops._adam_options import (
    TORCH_OPTIONS,
    check_betas_alike,
    check_options,
    step_options,
)
from hullft_ops._checks import by_device, check_dense, check_place, check_state
from hullft_ops._ops import check_lists_on_one_device, numbered, passed, register_fake
from hullft_ops._sharding import check_sharding, count_writes, local

_STATE = ("step", "exp_avg", "exp_avg_sq")


class ReplayAdam(Optimizer):
    """Adam and AdamW with ``step(repeats=r)``: r steps with one gradient in one sweep over memory.

    The result is that of r calls of :class:`torch.optim.Adam` (or AdamW) with the gradient held
    fixed: bias correction advances at every step and weight decay acts on the moving parameter.
    Parameters, gradient and moments are read once and parameters and moments written once, so that
    a few steps cost about what one does. ``state_dict`` is interchangeable with
    ``torch.optim.Adam`` and ``AdamW`` in both directions.

    Parameters are float32, float64, bfloat16 or float16, dense in any order of dimensions or
    strided, and share no memory. Gradients may have another of these dtypes and other strides.
    Arithmetic is float64 for float64 parameters and float32 for all others, to which the gradient
    is rounded first. Moments have the parameter's dtype. 16-bit parameters and moments are rounded
    once a call, not once a step, which makes ``step(repeats=r)`` more accurate than r calls.
    The result does not depend on the number of threads.

    Parameters may be DTensors, sharded or replicated, as FSDP2 makes them. Their moments are too.

    Args:
        params: parameters, named parameters or groups of them, as for any torch optimizer.
        lr: learning rate, a number or a tensor of one element.
        betas: decay rates of the first and second moment, each in [0, 1).
        eps: added to the root of the second moment.
        weight_decay: L2 penalty, or decoupled decay.
        amsgrad, differentiable: False, as torch's Adam has them by default.
        foreach, fused: taken for Adam's sake; there is one implementation. They exclude each other.
        maximize: step along the gradient instead of against it.
        capturable: keep step counts beside the parameters, and read an ``lr`` that is a tensor
            there too, so that steps can be captured in a CUDA graph. Neither is checked then. An
            ``lr`` that is a number, or on the CPU, is captured as it is.
        decoupled_weight_decay: decay the parameter itself, as AdamW does.
        rounding_seed: round bfloat16 parameters up or down at random, right on average, instead of
            to nearest, which loses steps below half a unit in the last place. The random bits
            depend on this seed, the step count, which parameters of a group are stepped together,
            and the place of a value in its parameter's memory, or its shard's: they are the same on
            every device, for any number of threads. From 0 to 2147483647.

    Raises:
        TypeError: an option of another type.
        ValueError: an option out of its range, or a parameter that is not floating.

    After Kingma and Ba, *Adam: A Method for Stochastic Optimization* (2015), and Loshchilov and
    Hutter, *Decoupled Weight Decay Regularization* (2019).
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
        rounding_seed: int | None = None,
    ) -> None:
        defaults: dict[str, Any] = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "foreach": foreach,
            "maximize": maximize,
            "capturable": capturable,
            "differentiable": differentiable,
            "fused": fused,
            "decoupled_weight_decay": decoupled_weight_decay,
        }
        if rounding_seed is not None:  # otherwise the defaults are those of torch.optim.Adam
            defaults["rounding_seed"] = _checks.check_integer(
                "ReplayAdam", "rounding_seed", rounding_seed, 0
            )
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group; its own options take the place of the optimizer's defaults."""
        if isinstance(param_group, dict):
            options = {**self.defaults, **param_group}
            check_options(options)
            check_betas_alike(options["betas"])
        super().add_param_group(param_group)
        for i, param in enumerate(self.param_groups[-1]["params"]):
            if param.dtype not in _checks.FLOAT_DTYPES:
                self.param_groups.pop()
                raise ValueError(
                    f"ReplayAdam: parameter {i} of the group must be float32, float64, bfloat16 "
                    f"or float16, got {param.dtype}"
                )

    def __setstate__(self, state: dict[str, Any]) -> None:
        for group in state["param_groups"]:
            check_options(group)
        super().__setstate__(state)
        for group in self.param_groups:
            group.setdefault("maximize", False)
            # torch's older AdamW has no name for what it is.
            decoupled = self.defaults["decoupled_weight_decay"]
            group.setdefault("decoupled_weight_decay", decoupled)
            for name, value in TORCH_OPTIONS.items():
                group.setdefault(name, value)
            # A state of torch's own Adam says nothing of it.
            if "rounding_seed" in self.defaults:
                group.setdefault("rounding_seed", self.defaults["rounding_seed"])
            for param in group["params"]:
                count = self.state.get(param, {}).get("step")
                if count is not None and not isinstance(count, Tensor):
                    device = param.device if group["capturable"] else "cpu"
                    self.state[param]["step"] = torch.tensor(float(count), device=device)

    @overload
    def step(
        self,
        closure: None = None,
        *,
        repeats: int | None = None,
        grads: Mapping[Tensor, Tensor] | None = None,
    ) -> None: ...

    @overload
    def step(
        self,
        closure: Callable[[], float],
        *,
        repeats: int | None = None,
        grads: Mapping[Tensor, Tensor] | None = None,
    ) -> float: ...

    @torch.no_grad()
    def step(
        self,
        closure: Callable[[], float] | None = None,
        *,
        repeats: int | None = None,
        grads: Mapping[Tensor, Tensor] | None = None,
    ) -> float | None:
        """Takes steps with the present gradients.

        Args:
            closure: evaluated once, with gradients enabled, before the steps; its loss is returned.
            repeats: how many steps, at least 1, for all groups. None takes each group's own option
                ``"repeats"``, which goes through wrappers that call ``step()`` without arguments;
                a group without one takes a single step.
            grads: the gradient of each parameter that is to move, in place of every ``.grad``; of
                the parameter's shape and device and any of the four dtypes, and of a DTensor's mesh
                and placements. Not with a closure. See :class:`GradientCache`.

        Parameters without a gradient are left alone. What is refused is refused before any
        parameter is written, in whatever group.

        Raises:
            TypeError: ``repeats`` is not an int, ``grads`` no mapping of tensors, a gradient is
                sparse or alone a DTensor, or the state holds something else than tensors.
            ValueError: ``repeats < 1``, an option that has gone out of its range, a gradient or
                moment of another shape, device, mesh or placements, parameters that are Partial,
                whose memory overlaps, views that interleave among them, or that have no storage,
                ``grads`` for a tensor that is no parameter of this optimizer.
            RuntimeError: captured in a CUDA graph without ``capturable``, or before
                :meth:`make_state`.
        """
        if repeats is not None:
            repeats = _checks.check_integer("ReplayAdam.step", "repeats", repeats, 1)
        self._check_capture()
        loss = None
        if closure is not None:
            if grads is not None:
                raise ValueError("ReplayAdam.step: closure and grads exclude each other, got both")
            with torch.enable_grad():
                loss = closure()
        if grads is not None:
            self._check_known(grads)
        rows = [(group, list(self._rows(group, grads))) for group in self.param_groups]
        calls = [
            (
                tuple([local(tensor) for tensor in column] for column in columns),
                step_options(group, repeats, self._seed_of(group, columns[0][0])),
            )
            for group, found in rows
            for columns in by_device(found)
        ]
        if len(calls) > 1:  # one alone checks its tensors before it writes
            _check_together(calls)
        for columns, options in calls:
            ops.adam_replay_(*columns, **options)
        for _, found in rows:
            count_writes(t for param, _, *moments, _ in found for t in (param, *moments))
        return loss

    @torch.no_grad()
    def reset(self) -> None:
        """Zeroes moments and step counts in place, as if no step had been taken.

        The next steps are those of a newly made optimizer with the present options; nothing is
        allocated again.
        """
        for param_state in self.state.values():
            for name in _STATE:
                if name in param_state:
                    param_state[name].zero_()

    @torch.no_grad()
    def make_state(self) -> None:
        """Makes moments and step count of every parameter that has none, as its first step would.

        Made before what is freed again, activations for instance, they do not come to lie where
        that was, in the way of what needs as much room next. Made before a step is captured in a
        CUDA graph, they are not made anew at every replay.

        Raises:
            RuntimeError: called while a CUDA graph is captured.
        """
        for group in self.param_groups:
            for param in group["params"]:
                self._state_of(param, group)

    def _seed_of(self, group: Mapping[str, Any], first: Tensor) -> int | None:
        """For the parameters of a call, which are told apart by their places in it: other calls of
        the same step have other first ones."""
        if group.get("rounding_seed") is None:
            return None
        seed = _checks.check_integer("ReplayAdam", "rounding_seed", group["rounding_seed"], 0)
        params = (param for group in self.param_groups for param in group["params"])
        return seed + next(i for i, param in enumerate(params) if param is first)

    def _check_capture(self) -> None:
        """A CUDA graph would repeat a step count that is read on the CPU."""
        for i, group in enumerate(self.param_groups):
            of_devices = {param.device: param for param in group["params"]}
            if not any(map(_is_captured, of_devices.values())):
                continue
            if not group["capturable"]:
                raise RuntimeError(
                    f"ReplayAdam.step: capturable of parameter group {i} must be True in the "
                    f"capture of a CUDA graph, got {group['capturable']}"
                )
            for j, param in enumerate(group["params"]):
                count = self.state.get(param, {}).get("step")
                if count is not None and count.device != param.device:
                    raise RuntimeError(
                        f"ReplayAdam.step: step of parameter {j} of group {i} must be on "
                        f"{param.device} in the capture of a CUDA graph, got {count.device}"
                    )

    def _check_known(self, grads: Mapping[Tensor, Tensor]) -> None:
        if not isinstance(grads, Mapping):
            raise TypeError(
                "ReplayAdam.step: grads must map parameters to gradients, got "
                f"{type(grads).__name__}"
            )
        known = {id(param) for group in self.param_groups for param in group["params"]}
        for i, param in enumerate(grads):
            if not isinstance(param, Tensor):
                raise TypeError(
                    f"ReplayAdam.step: key {i} of grads must be a parameter, got "
                    f"{type(param).__name__}"
                )
            if id(param) not in known:
                raise ValueError(
                    f"ReplayAdam.step: key {i} of grads, of shape {list(param.shape)}, is not a "
                    "parameter of this optimizer"
                )

    def _rows(
        self, group: dict[str, Any], grads: Mapping[Tensor, Tensor] | None
    ) -> Iterator[tuple[Tensor, ...]]:
        """Parameter, gradient, moments and step count of each parameter that is to move."""
        for i, param in enumerate(group["params"]):
            grad = param.grad if grads is None else grads.get(param)
            if grad is None:
                continue
            check_dense("ReplayAdam.step", i, grad, "torch.optim.SparseAdam takes those")
            check_place("ReplayAdam.step", i, param, grad)
            state = self._state_of(param, group)
            check_state("ReplayAdam.step", i, state, _STATE)
            moments = {name: state[name] for name in _STATE[1:]}
            check_sharding("ReplayAdam.step", i, param, {"the gradient": grad, **moments})
            yield param, grad, state["exp_avg"], state["exp_avg_sq"], state["step"]

    def _state_of(self, param: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[param]
        if not state:
            if _is_captured(param):
                raise RuntimeError(
                    f"ReplayAdam: a parameter of shape {list(param.shape)} must have its state "
                    "before the capture of a CUDA graph, which would make it at every replay: "
                    "call make_state() first"
                )
            # All or nothing: an interrupt or a lack of memory must not leave some of them.
            state.update(_new_state(param, group["capturable"]))
        return state


def _is_captured(param: Tensor) -> bool:
    if not param.is_cuda:
        return False
    with torch.cuda.device(param.device):  # a device has a current stream of its own
        return torch.cuda.is_current_stream_capturing()


def _new_state(param: Tensor, capturable: bool) -> dict[str, Tensor]:
    # What is made in inference mode cannot be zeroed or loaded into outside of it.
    with torch.inference_mode(False):
        step = torch.zeros((), dtype=torch.float32, device=param.device if capturable else "cpu")
        moments = (torch.zeros_like(param, memory_format=torch.preserve_format) for _ in _STATE[1:])
        return dict(zip(_STATE, (step, *moments), strict=True))


def _check_together(calls: Sequence[tuple[tuple[list[Tensor], ...], dict[str, Any]]]) -> None:
    """Refuses what any of the calls would, and memory that two of them share."""
    for device in dict.fromkeys(columns[0][0].device for columns, _ in calls):
        there = [call for call in calls if call[0][0][0].device == device]
        joined = zip(*(columns for columns, _ in there), strict=True)
        rates = [options["lr_tensor"] for _, options in there]
        ops.adam_replay_check(
            *(list(chain.from_iterable(column)) for column in joined),
            [rate for rate in rates if rate is not None],
        )


@register_fake("adam_replay_")
def _fake_adam_replay(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    steps: list[Tensor],
    *,
    lr_tensor: Tensor | None = None,
    **_options: object,
) -> None:
    lists = {"params": params, "grads": grads, "exp_avgs": exp_avgs, "exp_avg_sqs": exp_avg_sqs}
    scalars = numbered("steps", steps) | passed(lr_tensor=lr_tensor)
    check_lists_on_one_device("adam_replay_", lists, scalars)


@register_fake("adam_replay_check")
def _fake_adam_replay_check(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    steps: list[Tensor],
    lr_tensors: list[Tensor],
) -> None:
    lists = {"params": params, "grads": grads, "exp_avgs": exp_avgs, "exp_avg_sqs": exp_avg_sqs}
    scalars = numbered("steps", steps) | numbered("lr_tensors", lr_tensors)
    check_lists_on_one_device("adam_replay_check", lists, scalars)
