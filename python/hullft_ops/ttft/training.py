"""Training a model on a support: passes, clipping and steps."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

from hullft_ops import ReplayAdam
from hullft_ops.replay import is_captured
from hullft_ops.ttft.capture import branch
from hullft_ops.ttft.config import TTFTConfig
from hullft_ops.ttft.errors import NonFiniteLossError
from hullft_ops.ttft.graphs import PassGraphs
from hullft_ops.ttft.loss import MeanLoss, Take, backward_in_parts
from hullft_ops.ttft.models.attention import (
    can_pad,
    on_device,
    padded,
    padded_length,
)
from hullft_ops.ttft.models.checks import position_limit
from hullft_ops.ttft.models.forwards import eval_mode, fused_activations
from hullft_ops.ttft.models.onednn import wide_products
from hullft_ops.ttft.precision import autocast
from hullft_ops.ttft.steps import Deadline, StageClock, Sweep, plan
from hullft_ops.ttft.support import Support


class SupportTrainer:
    """Adam with a fresh state for every support. All supports share its memory.

    Args:
        model: a causal language model.
        trained: the parameters to train, each once.
        config: rates, clipping, autocast and graphs.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        trained: Sequence[nn.Parameter],
        config: TTFTConfig,
    ) -> None:
        self._model = model
        self._trained = list(trained)
        self._config = config
        self._device = model.device
        self._optimizer = ReplayAdam(self._trained, lr=config.lr)
        self._loss = MeanLoss(model)
        self._graphs: PassGraphs | None = None
        if config.graphs and self._device.type == "cuda":
            self._graphs = PassGraphs(model, self._trained)
        # A graph serves one length.
        self._is_padded = self._graphs is not None and can_pad(model)
        # Where graphs read it, so that one serves any number of steps.
        self._repeats = torch.ones((), dtype=torch.int64, device=self._device)

    def train(
        self,
        support: Support,
        clock: StageClock,
        deadline: Deadline | None = None,
        *,
        start: int = 0,
        stop: int | None = None,
    ) -> list[float]:
        """Take ``support.counts[i]`` steps on passage i, several with each gradient.

        Args:
            support: what to train on.
            clock: counts the seconds of each stage.
            deadline: ends the training before a pass that it does not allow.
            start: the first pass. From above 0, it goes on with the support trained on last.
            stop: the pass to end before; None for the last one.

        Returns:
            The mean loss of each pass, in nats.

        Raises:
            NonFiniteLossError: a loss is not finite.
        """
        sweeps = plan(support.counts, self._config)[start:stop]
        if not sweeps:
            return []
        if start == 0:
            # The moments stay, so they are allocated before any memory that is freed again.
            self._reset_optimizer()
        graphs = self._usable_graphs()
        passes: list[Sweep] = []
        with _training_mode(self._model):
            # One tensor for all losses, allocated first. A loss left where its pass put it would
            # split the memory that the next pass needs for larger activations.
            losses = torch.empty(len(sweeps), dtype=torch.float64, device=self._device)
            texts = on_device(self._padded(support.input_ids), self._device)
            for sweep in sweeps:
                tokens = texts[sweep.passage]
                if deadline and not deadline.allows(len(tokens)):
                    break
                loss = self._pass(sweep, tokens, graphs, clock)
                losses[len(passes)] = loss
                passes.append(sweep)
                # Elsewhere, looking would stall the device.
                if self._device.type == "cpu":
                    _check_losses([loss.item()], [sweep], support)
                # A caller's autocast would keep using its copies of the old weights.
                torch.clear_autocast_cache()
        # Reading each loss would stall a GPU every time, and reading none would leave the GPU's
        # work out of the time.
        values: list[float] = losses[: len(passes)].tolist()
        _check_losses(values, passes, support)
        return values

    def _reset_optimizer(self) -> None:
        self._optimizer.param_groups[0]["capturable"] = self._graphs is not None
        self._optimizer.make_state()
        self._optimizer.reset()

    def _usable_graphs(self) -> PassGraphs | None:
        if self._graphs is not None and self._graphs.can_serve(self._optimizer):
            return self._graphs
        return None

    def _padded(self, texts: Sequence[Sequence[int]]) -> Sequence[Sequence[int]]:
        if not self._is_padded:
            return texts
        limit = position_limit(self._model)
        return [padded(text, padded_length(len(text), limit)) for text in texts]

    def _pass(
        self, sweep: Sweep, tokens: Tensor, graphs: PassGraphs | None, clock: StageClock
    ) -> Tensor:
        """The loss of a passage, after the steps with its gradient."""
        if graphs is None:
            return self._eager_pass(tokens, clock, sweep.repeats)
        self._repeats.fill_(sweep.repeats)
        one_pass = partial(self._eager_pass, repeats=self._repeats)
        return graphs.run(len(tokens), tokens, one_pass, clock)

    def _eager_pass(
        self, tokens: Tensor, clock: StageClock, repeats: int | Tensor
    ) -> Tensor:
        self._optimizer.zero_grad(set_to_none=True)
        with clock.of("forward"), autocast(self._device, self._config.dtype):
            mean_loss = self._loss.of_padded if self._is_padded else self._loss
            loss = mean_loss(tokens)
        _check_depends(loss)
        take = partial(self._take_steps, repeats, clock)
        with clock.of("backward"):
            # Each gradient is needed only for the steps of its own parameter.
            if self._config.max_grad_norm is None and is_captured(self._device):
                self._backward_beside_steps(loss, take)
            # Not in an eager pass on a GPU: nobody has measured what the additional calls cost.
            elif self._config.max_grad_norm is None and self._device.type == "cpu":
                backward_in_parts(loss, self._trained, take)
            else:
                torch.autograd.backward(loss)
                take()
        self._optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def _backward_beside_steps(self, loss: Tensor, take: Take) -> None:
        """Steps wait for memory, while the backward pass of the layers below computes."""
        alive = []
        with branch(self._device) as launch:

            def take_beside(gradients: dict[Tensor, Tensor]) -> None:
                alive.append(gradients)
                launch(partial(take, gradients))

            backward_in_parts(loss, self._trained, take_beside)

    def _take_steps(
        self,
        repeats: int | Tensor,
        clock: StageClock,
        gradients: dict[Tensor, Tensor] | None = None,
    ) -> None:
        """Take the steps with these gradients, or with those in ``.grad`` if None."""
        with clock.of("step"):
            if self._config.max_grad_norm is not None:
                nn.utils.clip_grad_norm_(self._trained, self._config.max_grad_norm)
            self._optimizer.step(repeats=repeats, grads=gradients)


@contextmanager
def _training_mode(model: nn.Module) -> Iterator[None]:
    """Record gradients in eval mode, whatever mode the caller is in, with faster forwards."""
    with (
        eval_mode(model),
        torch.inference_mode(False),
        torch.enable_grad(),
        wide_products(model),
        fused_activations(model),
    ):
        yield


def _check_depends(loss: Tensor) -> None:
    """RuntimeError if the loss depends on no parameter that is trained."""
    if not loss.requires_grad:
        raise RuntimeError(
            "TestTimeFinetuner: the loss depends on no parameter that is trained: is an adapter "
            "merged or not active?"
        )


def _check_losses(
    losses: Sequence[float], passes: Sequence[Sweep], support: Support
) -> None:
    """Refuse a loss that is not finite."""
    for loss, sweep in zip(losses, passes, strict=True):
        if not math.isfinite(loss):
            index = support.indices[sweep.passage]
            raise NonFiniteLossError(
                f"TestTimeFinetuner: the loss of passage {index} of the datastore is {loss} at "
                f"step {sweep.start + 1} of {sum(support.counts)}; the model has been "
                "restored"
            )
