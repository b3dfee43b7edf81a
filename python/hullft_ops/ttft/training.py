"""Training a model on a support: passes, clipping and steps."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

from hullft_ops import ReplayAdam
from hullft_ops._terminal import progress
from hullft_ops.ttft.config import TTFTConfig
from hullft_ops.ttft.contexts import at_exit, signal_safe
from hullft_ops.ttft.errors import NonFiniteLossError
from hullft_ops.ttft.loss import MeanLoss
from hullft_ops.ttft.models.modes import autocast, eval_mode
from hullft_ops.ttft.steps import Deadline, Pass, StageClock
from hullft_ops.ttft.support import Support

Take = Callable[[dict[Tensor, Tensor]], None]
# How much is handed over at once: a share of all gradients in bytes, and at least so many bytes.
# The call of a step on one small parameter may cost more than its work.
_SHARE = 1 / 16
_LEAST_BYTES = 8 * 2**20


class SupportTrainer:
    """Adam with a fresh state for every support. All supports share its memory.

    Args:
        model: a causal language model.
        trained: the parameters to train, each once.
        config: rates, clipping and autocast.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        trained: Sequence[nn.Parameter],
        config: TTFTConfig,
    ) -> None:
        self.trained = list(trained)
        self.config = config
        self._model = model
        self._device = model.device
        # Rounding to nearest would lose most steps of bfloat16 parameters.
        self._optimizer = ReplayAdam(self.trained, lr=config.lr, rounding_seed=0)
        self._loss = MeanLoss(model)

    def train(
        self,
        support: Support,
        passes: Sequence[Pass],
        clock: StageClock,
        deadline: Deadline | None = None,
    ) -> list[float]:
        """Take the steps of these passes.

        Args:
            support: what to train on.
            passes: consecutive ones. After those of an earlier call, the support must be the same.
            clock: counts the seconds of each stage.
            deadline: ends the training before a pass that it does not allow.

        Returns:
            The mean loss of each pass, in nats.

        Raises:
            NonFiniteLossError: a loss is not finite.
        """
        if not passes:
            return []
        if passes[0].start == 0:
            # The moments stay, so they are allocated before any memory that is freed again.
            self._optimizer.make_state()
            self._optimizer.reset()
        losses: list[float] = []
        with _training_mode(self._model):
            texts = [*support.input_ids, support.prompt_ids]
            for current in progress(passes, desc="training", unit="pass"):
                ids = texts[current.passage]
                if deadline is not None and not deadline.allows(len(ids)):
                    break
                tokens = torch.tensor(ids, device=self._device)
                # Waits for the pass, whose time the deadline counts.
                loss = self._pass(tokens, current.repeats, clock).item()
                _check_loss(loss, current, support)
                losses.append(loss)
                # A caller's autocast would keep using its copies of the old weights.
                torch.clear_autocast_cache()
        return losses

    def _pass(self, tokens: Tensor, repeats: int, clock: StageClock) -> Tensor:
        """The loss of a passage, after the steps with its gradient."""
        self._optimizer.zero_grad(set_to_none=True)
        with clock.of("forward"), autocast(self._device, self.config.dtype):
            loss = self._loss(tokens)
        _check_depends(loss)
        take = partial(self._take_steps, repeats, clock)
        with clock.of("backward"):
            # Each gradient is needed only for the steps of its own parameter. Not so on a GPU:
            # nobody has measured there what the additional calls cost.
            if self.config.max_grad_norm is None and self._device.type == "cpu":
                backward_in_parts(loss, self.trained, take)
            else:
                torch.autograd.backward(loss)
                take()
        self._optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def _take_steps(
        self,
        repeats: int,
        clock: StageClock,
        gradients: dict[Tensor, Tensor] | None = None,
    ) -> None:
        """Take the steps with these gradients, or with those in ``.grad`` if None."""
        with clock.of("step"):
            if self.config.max_grad_norm is not None:
                nn.utils.clip_grad_norm_(self.trained, self.config.max_grad_norm)
            self._optimizer.step(repeats=repeats, grads=gradients)


@signal_safe
def _training_mode(model: nn.Module) -> Iterator[None]:
    """Record gradients in eval mode, whatever mode the caller is in."""
    with (
        eval_mode(model),
        torch.inference_mode(False),
        torch.enable_grad(),
    ):
        yield


def _check_depends(loss: Tensor) -> None:
    """RuntimeError if the loss depends on no parameter that is trained."""
    if not loss.requires_grad:
        raise RuntimeError(
            "TestTimeFinetuner: the loss depends on no parameter that is trained: is an adapter "
            "merged or not active?"
        )


def _check_loss(loss: float, current: Pass, support: Support) -> None:
    """Refuse a loss that is not finite."""
    if not math.isfinite(loss):
        names = [f"passage {index} of the datastore" for index in support.indices]
        name = [*names, "the prompt"][current.passage]
        raise NonFiniteLossError(
            f"TestTimeFinetuner: the loss of {name} is {loss} at step {current.start + 1} of "
            f"{support.steps}"
        )


def backward_in_parts(loss: Tensor, parameters: Sequence[Tensor], take: Take) -> None:
    """Hand complete gradients to ``take`` during the pass, several at a time, and drop them.

    ``take`` may change their parameters: whatever multiplies by one on the way back contributes to
    its gradient, and is done by then.

    Raises:
        RuntimeError: autograd notices another use, or a gradient comes in pieces, as of reentrant
            checkpoints that share the parameter.
    """
    gradients = _ReadyGradients(parameters, take)
    handles: list[Any] = []
    with at_exit(partial(_remove, handles)):
        for parameter in parameters:
            handle = parameter.register_post_accumulate_grad_hook(gradients.is_whole)  # type: ignore[no-untyped-call]
            handles.append(handle)
        torch.autograd.backward(loss)
        gradients.hand_over(parameters)


def _remove(handles: Iterable[Any]) -> None:
    for handle in handles:
        handle.remove()


class _ReadyGradients:
    def __init__(self, parameters: Sequence[Tensor], take: Take) -> None:
        self._take = take
        total = sum(parameter.nbytes for parameter in parameters)
        self._enough = max(_SHARE * total, _LEAST_BYTES)
        self._whole: list[Tensor] = []
        self._bytes = 0
        self._taken: set[Tensor] = set()

    def is_whole(self, parameter: Tensor) -> None:
        if parameter in self._taken:
            raise RuntimeError(
                f"the backward pass makes the gradient of a parameter {list(parameter.shape)} in "
                "pieces, and a step was taken with the first: max_grad_norm=math.inf makes all "
                "gradients before the first step"
            )
        self._whole.append(parameter)
        self._bytes += parameter.nbytes
        if self._bytes >= self._enough:
            self.hand_over(self._whole)
            self._whole, self._bytes = [], 0

    def hand_over(self, parameters: Sequence[Tensor]) -> None:
        gradients = {p: p.grad for p in parameters if p.grad is not None}
        for parameter in gradients:
            parameter.grad = None
        if gradients:
            self._taken.update(gradients)
            self._take(gradients)
