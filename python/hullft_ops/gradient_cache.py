"""A cache of one gradient per example, for steps that are not consecutive."""

from collections.abc import Hashable, Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer

from hullft_ops import _checks
from hullft_ops._ops import by_device, call_in_place, local
from hullft_ops.replay import ReplayAdam


class GradientCache:
    """One gradient per example, kept outside ``.grad``, for more steps later.

    Use it when an example's steps are not consecutive::

        loss(example).backward()
        cache.accumulate(example, beta=0)
        ...
        cache.replay(example, optimizer, repeats=2)

    An example's first gradient allocates its buffers, and `drop` frees them. `gradients`, `replay`
    and `drop` raise a KeyError for an example that is not cached.

    Args:
        params: the parameters whose gradients to keep. Gradients of DTensors are sharded alike.
        dtype: dtype of the cached gradients: float32, float64, bfloat16 or float16; None for each
            parameter's own.

    Raises:
        TypeError, ValueError: a parameter is not a tensor, comes twice or is not floating, there
            are none, or the dtype is another one.
    """

    def __init__(
        self, params: Iterable[Tensor], dtype: torch.dtype | None = None
    ) -> None:
        if isinstance(params, Tensor):
            raise TypeError(
                "GradientCache: params must be an iterable of tensors, got one tensor"
            )
        params = tuple(params)
        if not params:
            raise ValueError("GradientCache: params is empty")
        _checks.check_params("GradientCache", params)
        if dtype is not None and dtype not in _checks.FLOAT_DTYPES:
            raise ValueError(
                f"GradientCache: dtype must be {_checks.FLOATS}, got {dtype}"
            )
        self._params = params
        self._dtype = dtype
        # Buffers by their parameters.
        self._cached: dict[Hashable, dict[Tensor, Tensor]] = {}

    def __contains__(self, example: Hashable) -> bool:
        return example in self._cached

    def __len__(self) -> int:
        """The number of cached examples."""
        return len(self._cached)

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers in this process."""
        total = 0
        for entry in self._cached.values():
            for buffer in entry.values():
                total += local(buffer).nbytes
        return total

    @torch.no_grad()
    def accumulate(
        self, example: Hashable, *, alpha: float = 1.0, beta: float = 1.0
    ) -> None:
        """Takes the parameters' present ``.grad``: ``cached = beta * cached + alpha * grad``.

        An example that is not cached starts from zero; ``beta=0`` replaces the cached gradient. A
        parameter whose ``.grad`` is None adds nothing, and `replay` leaves it alone unless it
        had a gradient before. Arithmetic is float64 if the cache or the gradient is, else float32.
        A CUDA graph repeats what it captured: an example that was not cached at that time starts
        from zero at every replay.

        Args:
            example: the key of the gradient, for example an index.
            alpha: the weight of the present gradient, finite.
            beta: the weight of the cached gradient, finite.

        Raises:
            TypeError: a gradient is sparse.
            ValueError: no parameter has a gradient, a parameter has changed its shape, or a weight
                that is used is not finite in float32.
        """
        grads = self._present_gradients()
        entry = dict(self._cached.get(example, {}))
        continued = [param for param in grads if param in entry]
        started = [param for param in grads if param not in entry]
        entry |= {param: self._new_buffer(param) for param in started}
        for params, weight in ((started, 0.0), (continued, beta)):
            for columns in by_device(
                [(entry[param], grads[param]) for param in params]
            ):
                call_in_place("grad_accumulate_", columns, alpha=alpha, beta=weight)
        for param in [known for known in entry if known.grad is None]:
            if beta == 0:
                del entry[param]
            else:
                entry[param].mul_(beta)
        self._cached[example] = entry

    def gradients(self, example: Hashable) -> dict[Tensor, Tensor]:
        """The cached gradient of each parameter that has one: the buffers, not copies."""
        if example not in self._cached:
            raise KeyError(f"GradientCache: example {example!r} is not cached")
        return dict(self._cached[example])

    def replay(
        self, example: Hashable, optimizer: Optimizer, *, repeats: int | None = None
    ) -> None:
        """Takes optimizer steps with the example's cached gradient.

        It reads and writes no ``.grad``. ``repeats`` and errors are as in `ReplayAdam.step`.

        Args:
            example: the key of the gradient.
            optimizer: a `ReplayAdam`, or a wrapper that has it as ``.optimizer``, as Accelerate's
                does.
            repeats: how many steps to take.
        """
        unwrapped = getattr(optimizer, "optimizer", optimizer)
        if not isinstance(unwrapped, ReplayAdam):
            kind = type(unwrapped).__name__
            raise TypeError(f"GradientCache.replay needs a ReplayAdam, got {kind}")
        unwrapped.step(repeats=repeats, grads=self.gradients(example))

    def drop(self, example: Hashable) -> None:
        """Forgets an example."""
        self.gradients(example)
        del self._cached[example]

    def clear(self) -> None:
        """Forgets every example."""
        self._cached.clear()

    def _present_gradients(self) -> dict[Tensor, Tensor]:
        op = "GradientCache.accumulate"
        grads = {}
        for i, param in enumerate(self._params):
            if param.grad is not None:
                _checks.check_gradient(op, i, param, param.grad)
                grads[param] = param.grad
        if not grads:
            raise ValueError(
                f"{op}: no parameter has a gradient, call backward() first"
            )
        return grads

    def _new_buffer(self, param: Tensor) -> Tensor:
        # A tensor made in inference mode cannot be scaled outside of it.
        with torch.inference_mode(False):
            return torch.empty_like(param, dtype=self._dtype)
