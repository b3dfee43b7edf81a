"""A backward pass that does not hold all gradients at once."""

from collections.abc import Callable, Sequence

import torch

Take = Callable[[dict[torch.Tensor, torch.Tensor]], None]

# How much is handed over at once: a share of all gradients in bytes, and at least so many bytes.
# The call of a step on one small parameter may cost more than its work.
_SHARE = 1 / 16
_LEAST_BYTES = 8 * 2**20


def backward_in_parts(loss: torch.Tensor, parameters: Sequence[torch.Tensor], take: Take) -> None:
    """Hand complete gradients to ``take`` during the pass, several at a time, and drop them.

    ``take`` may change their parameters. An operation that multiplies by a parameter on the way
    back also contributes to its gradient, so it is done by then. Autograd notices any other use.

    Args:
        loss: a scalar.
        parameters: leaves without a gradient.
        take: receives parameters and their gradients.

    Raises:
        RuntimeError: the backward pass needs a parameter that ``take`` has changed, or makes its
            gradient in several pieces, as reentrant checkpoints that share the parameter do.
    """
    gradients = _Gradients(parameters, take)
    try:
        gradients.listen()
        torch.autograd.backward(loss)
    finally:
        stop_listening(parameters)
    gradients.hand_over(parameters)


def stop_listening(parameters: Sequence[torch.Tensor]) -> None:
    """Take off the hooks of `backward_in_parts`, also those that an interrupt left behind."""
    for parameter in parameters:
        hooks = parameter._post_accumulate_grad_hooks or {}
        for key, hook in list(hooks.items()):
            if isinstance(getattr(hook, "__self__", None), _Gradients):
                del hooks[key]


class _Gradients:
    def __init__(self, parameters: Sequence[torch.Tensor], take: Take) -> None:
        self._parameters = parameters
        self._take = take
        self._enough = max(_SHARE * sum(p.nbytes for p in parameters), _LEAST_BYTES)
        self._whole: list[torch.Tensor] = []
        self._bytes = 0
        self._taken: set[torch.Tensor] = set()

    def listen(self) -> None:
        for parameter in self._parameters:
            parameter.register_post_accumulate_grad_hook(self._is_whole)  # type: ignore[no-untyped-call]

    def hand_over(self, parameters: Sequence[torch.Tensor]) -> None:
        gradients = {p: p.grad for p in parameters if p.grad is not None}
        for parameter in gradients:
            parameter.grad = None
        if gradients:
            self._taken.update(gradients)
            self._take(gradients)

    def _is_whole(self, parameter: torch.Tensor) -> None:
        if parameter in self._taken:
            raise RuntimeError(
                f"the backward pass makes the gradient of a parameter {list(parameter.shape)} in "
                "pieces, and a step was taken with the first: max_grad_norm=math.inf makes all "
                "gradients before the first step"
            )
        self._whole.append(parameter)
        self._bytes += parameter.nbytes
        if self._bytes >= self._enough:
            whole, self._whole, self._bytes = self._whole, [], 0
            self.hand_over(whole)
