"""Reusing a gradient: Adam that takes several steps with one.

Gradient Reuse: Khamis and Maalouf, *Efficient Test-Time Finetuning of LLMs via Convex
Reconstruction and Gradient Caching* (arXiv:2605.30337).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from hullft_ops import _checks
from hullft_ops._ops import (
    Columns,
    by_device,
    call_in_place,
    count_writes,
    locals_of,
)

_GradOf = Callable[[Tensor], Tensor | None]


class ReplayAdam(Optimizer):
    """Adam and AdamW with ``step(repeats=r)``: r steps with one gradient in one sweep over memory.

    The result equals r calls of `torch.optim.Adam` (or AdamW) with the gradient held fixed:
    each step advances bias correction, and weight decay acts on the moving parameter. A few steps
    cost about as much as one. ``state_dict`` is interchangeable with ``torch.optim.Adam`` and
    ``AdamW`` in both directions.

    Parameters are float32, float64, bfloat16 or float16, dense in any order of dimensions or
    strided, and share no memory. Gradients may have another of these dtypes and other strides.
    Arithmetic is float64 for float64 parameters and float32 for all others; the gradient is rounded
    to that first. Moments have the parameter's dtype. 16-bit parameters and moments are rounded
    once per call, not once per step, so ``step(repeats=r)`` is more accurate than r calls. The
    result does not depend on the number of threads.

    Parameters may be DTensors, sharded or replicated, as FSDP2 makes them. Their moments are then
    DTensors too.

    Args:
        params: parameters, named parameters or groups of them, as for any torch optimizer. The
            option ``"lr_scales"`` of a group is a list of a number for each of its parameters,
            which multiplies the parameter's learning rate.
        lr: learning rate, a number or a tensor of one element. Without ``capturable``, a step waits
            for the value of a tensor on a GPU.
        betas: decay rates of the first and second moment, each in [0, 1).
        eps: added to the root of the second moment.
        weight_decay: L2 penalty, or decoupled decay.
        amsgrad: must be False, the default of torch's Adam.
        differentiable: must be False, the default of torch's Adam.
        foreach: accepted for the sake of Adam's callers. It changes nothing.
        fused: accepted for the sake of Adam's callers. It changes nothing.
        maximize: step along the gradient instead of against it.
        capturable: keep step counts beside the parameters, and read the learning rate there too if
            it is a tensor, so that a CUDA graph can capture steps. Neither is checked then. A
            number, or a rate on the CPU, is captured with its present value.
        decoupled_weight_decay: decay the parameter itself, as AdamW does.
        rounding_seed: round bfloat16 parameters up or down at random, right on average. Rounding to
            nearest loses steps below half a unit in the last place. The random bits depend on this
            seed, the step count, which parameters of a group step together, and a value's place in
            the memory of its parameter or shard. They are the same on every device and for any
            number of threads. From 0 to 2147483647.
        repeats: how many steps each call takes, unless the call or a group says otherwise; None
            for one.

    Raises:
        TypeError: an option has the wrong type, or a parameter is not floating.
        ValueError: an option is out of range, or a parameter comes twice.

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
        repeats: int | None = None,
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
        if rounding_seed is not None:  # otherwise the defaults equal torch.optim.Adam's
            defaults["rounding_seed"] = rounding_seed
        if repeats is not None:
            defaults["repeats"] = repeats
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group; its own options take the place of the optimizer's defaults."""
        if isinstance(param_group, dict):
            _checks.adam_options({**self.defaults, **param_group})
        super().add_param_group(param_group)
        try:
            _checks.check_params("ReplayAdam", self.param_groups[-1]["params"])
            _checks.check_lr_scales(self.param_groups[-1])
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise

    def __setstate__(self, state: dict[str, Any]) -> None:
        for group in state["param_groups"]:
            _checks.adam_options(group)
        super().__setstate__(state)
        for group in self.param_groups:
            # A state of torch's own Adam, or of its older AdamW, lacks some options.
            for name, value in self.defaults.items():
                group.setdefault(name, value)

    @torch.no_grad()
    def step(  # type: ignore[override]  # torch's has an overload for each kind of closure
        self,
        closure: Callable[[], float] | None = None,
        *,
        repeats: int | Tensor | None = None,
        grads: Mapping[Tensor, Tensor] | None = None,
    ) -> float | None:
        """Takes steps with the present gradients.

        Args:
            closure: evaluated once before the steps, with gradients enabled; its loss is returned.
            repeats: how many steps to take in all groups; 0 changes nothing. None takes each
                group's own option ``"repeats"``, which works through wrappers that call ``step()``
                without arguments. A group without that option takes one step. An int64 tensor of
                one element on the parameters' GPU is read there, unchecked, so that replays of one
                CUDA graph can take different numbers of steps; this needs ``capturable``.
            grads: the gradient of each parameter to move, in place of every ``.grad``. It has the
                parameter's shape and device, a DTensor's mesh and placements, and any of the four
                dtypes. Not with a closure. See `GradientCache`.

        Parameters without a gradient stay as they are. Options are checked before anything is
        written, and the tensors of a group before any of that group is.

        Raises:
            TypeError: ``repeats`` is neither an int nor a tensor, ``grads`` is not a mapping of
                tensors, a gradient is sparse, only one of gradient and parameter is a DTensor, or
                the state holds something other than tensors.
            ValueError: ``repeats < 0``, or its tensor is not one int64 value beside the parameters
                and their step counts; an option is now out of range; a gradient or moment has
                another shape, device, mesh or placements; a parameter is Partial, overlaps or
                interleaves with another in memory, or has no storage; or ``grads`` has a tensor
                that is not a parameter of this optimizer.
            RuntimeError: a CUDA graph captures the step without ``capturable``, or before
                `make_state`.
        """
        if repeats is not None and not isinstance(repeats, Tensor):
            repeats = _checks.check_integer("ReplayAdam.step", "repeats", repeats, 0)
        self._check_capture()
        loss = None
        if closure is not None:
            if not callable(closure):
                raise TypeError(
                    f"ReplayAdam.step: closure must be a function, got {closure!r}; "
                    "step(repeats=2) takes two steps"
                )
            if grads is not None:
                raise ValueError(
                    "ReplayAdam.step: closure and grads exclude each other, got both"
                )
            with torch.enable_grad():
                loss = closure()
        if grads is not None:
            self._check_known(grads)
        grad_of = attrgetter("grad") if grads is None else grads.get
        calls = [
            (columns, self._options(group, columns[0], repeats))
            for group in self.param_groups
            if _takes_steps(group, repeats)
            for columns in self._columns(group, grad_of)
        ]
        try:
            for columns, options in calls:
                call_in_place("adam_replay_", columns, **options)
        except Exception:
            for group in self.param_groups:
                list(self._rows(group, grad_of))  # names a bad tensor by its parameter
            raise
        return loss

    @torch.no_grad()
    def reset(self) -> None:
        """Zeroes moments and step counts in place, as if no step had been taken.

        The next steps equal a new optimizer's with the present options. Nothing is allocated
        again.
        """
        tensors = [tensor for state in self.state.values() for tensor in state.values()]
        # A launch for each tensor would take the host longer than the device.
        for columns in by_device([(tensor,) for tensor in tensors]):
            torch._foreach_zero_(*locals_of(columns))
        count_writes(tensors)

    @torch.no_grad()
    def make_state(self) -> None:
        """Makes moments and step count of every parameter that has none, as its first step would.

        Call it before a CUDA graph captures a step, and before you allocate memory that is freed
        again, such as activations. Otherwise the moments may settle in the freed memory and block
        the next allocation of that size.

        Raises:
            RuntimeError: a CUDA graph is being captured.
        """
        for group in self.param_groups:
            for param in group["params"]:
                self._state_of(param, group)

    def _options(
        self,
        group: dict[str, Any],
        params: Sequence[Tensor],
        repeats: int | Tensor | None,
    ) -> dict[str, Any]:
        """The operator's options, checked again because anybody may have changed the group."""
        options = _checks.adam_options(group)
        if group.get("lr_scales") is not None:
            _checks.check_lr_scales(group)
            scales = dict(zip(group["params"], group["lr_scales"], strict=True))
            options["lr_scales"] = torch.tensor(
                [scales[param] for param in params], dtype=torch.float64, device="cpu"
            )
        if torch.compiler.is_compiling() and options["lr_tensor"] is None:
            # Each number would make a new graph; the factor of a tensor is an input of the graph.
            one = torch.ones((), dtype=torch.float64, device="cpu")
            rate = one * options["lr"]
            options |= {"lr": 0.0, "lr_tensor": rate}
        if isinstance(repeats, Tensor):
            options |= {"repeats": 1, "repeats_tensor": repeats}
        elif repeats is not None:
            options["repeats"] = repeats
        if options["seed"] is not None:
            # Within a call the parameters' places tell them apart. Other calls of the same step
            # begin with another parameter.
            others = chain.from_iterable(group["params"] for group in self.param_groups)
            options["seed"] += next(
                i for i, param in enumerate(others) if param is params[0]
            )
        return options

    def _check_capture(self) -> None:
        """Refuse a capture that would repeat a step count from the CPU at every replay."""
        for i, group in enumerate(self.param_groups):
            params = group["params"]
            if not any(map(is_capturing, {param.device for param in params})):
                continue
            if not group["capturable"]:
                raise RuntimeError(
                    f"ReplayAdam.step: capturable of parameter group {i} must be True in the "
                    f"capture of a CUDA graph, got {group['capturable']}"
                )
            for j, param in enumerate(params):
                count = self.state.get(param, {}).get("step")
                if count is not None and count.device != param.device:
                    raise RuntimeError(
                        f"ReplayAdam.step: step of parameter {j} of group {i} must be on "
                        f"{param.device} in the capture of a CUDA graph, got {count.device}"
                    )

    def _check_known(self, grads: Mapping[Tensor, Tensor]) -> None:
        if not isinstance(grads, Mapping):
            kind = type(grads).__name__
            raise TypeError(
                f"ReplayAdam.step: grads must map parameters to gradients, got {kind}"
            )
        known = {id(param) for group in self.param_groups for param in group["params"]}
        for i, param in enumerate(grads):
            if id(param) not in known:
                raise ValueError(
                    f"ReplayAdam.step: key {i} of grads is not a parameter of this optimizer, "
                    f"got {getattr(param, 'shape', param)!r}"
                )

    def _columns(self, group: dict[str, Any], grad_of: _GradOf) -> list[Columns]:
        """Parameters, gradients, moments and step counts that will move, for each device.

        A model has hundreds. Of plain tensors on one device, the operator checks the rest.
        """
        params, grads = [], []
        for param in group["params"]:
            grad = grad_of(param)
            if grad is not None:
                params.append(param)
                grads.append(grad)
        plain = _checks.is_plain(params) and _checks.is_plain(grads)
        # A device's number is made faster than a torch.device.
        devices = set(map(Tensor.get_device, params))
        if plain and len(devices) == 1 and not params[0].is_meta:
            states = [
                self.state[param] or self._state_of(param, group) for param in params
            ]
            with suppress(KeyError):
                moments = [[s[name] for s in states] for name in _checks.ADAM_STATE]
                return [(params, grads, *moments)]
        return list(by_device(list(self._rows(group, grad_of))))

    def _rows(
        self, group: dict[str, Any], grad_of: _GradOf
    ) -> Iterator[tuple[Tensor, ...]]:
        """Parameter, gradient, moments and step count of each parameter that will move."""
        for i, param in enumerate(group["params"]):
            grad = grad_of(param)
            if grad is not None:
                _checks.check_gradient("ReplayAdam.step", i, param, grad)
                state = self._state_of(param, group)
                _checks.check_state("ReplayAdam.step", i, param, state)
                yield param, grad, *(state[name] for name in _checks.ADAM_STATE)

    def _state_of(self, param: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[param]
        if not state:
            if is_capturing(param.device):
                raise RuntimeError(
                    f"ReplayAdam: a parameter of shape {list(param.shape)} must have its state "
                    "before the capture of a CUDA graph, which would make it at every replay: "
                    "call make_state() first"
                )
            count_device = param.device if group["capturable"] else "cpu"
            # A tensor made in inference mode cannot be zeroed or loaded into outside of it.
            with torch.inference_mode(False):
                new = {
                    "step": torch.zeros((), dtype=torch.float32, device=count_device),
                    "exp_avg": torch.zeros_like(param),
                    "exp_avg_sq": torch.zeros_like(param),
                }
            # All or nothing: an interrupt or a lack of memory must not leave some of them.
            state.update(new)
        return state


class ReplayAdamW(ReplayAdam):
    """`ReplayAdam` with the arguments and defaults of `torch.optim.AdamW`.

    Weight decay is decoupled, and 0.01 by default. ``options`` are the other ones of `ReplayAdam`.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            decoupled_weight_decay=True,
            **options,
        )


def _takes_steps(group: Mapping[str, Any], repeats: int | Tensor | None) -> bool:
    number = group.get("repeats", 1) if repeats is None else repeats
    return isinstance(number, Tensor) or number != 0


def is_capturing(device: torch.device) -> bool:
    """Whether a CUDA graph captures what this thread launches on the device."""
    if device.type != "cuda":
        return False
    with torch.cuda.device(device):  # each device has its own current stream
        return torch.cuda.is_current_stream_capturing()
