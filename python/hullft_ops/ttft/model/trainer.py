"""Training a model on a support: passes, replays, clipping and learning rates."""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

import hullft_ops
from hullft_ops._checks import check_integer, check_number
from hullft_ops.ttft.errors import NonFiniteLossError
from hullft_ops.ttft.model.loss import MeanLoss, backward_in_parts
from hullft_ops.ttft.model.onednn import has_bfloat16, wide_products
from hullft_ops.ttft.model.patches import eval_mode, fused_activations
from hullft_ops.ttft.model.steps import (
    ORDERS,
    SCHEDULES,
    Budget,
    StageClock,
    Sweep,
    learning_rate_factor,
    plan,
)


class SupportTrainer:
    """Adam with a fresh state for every support. All supports share its buffers.

    Args:
        model: a causal language model, or a PEFT model around one.
        trained: the parameters to train, each once.
        lr: Adam's learning rate.
        order: order of the steps, see `plan`.
        schedule: schedule of the learning rate, see `learning_rate_factor`.
        max_grad_norm: norm to clip every gradient to; None for no clipping.
        autocast: dtype of the forward pass; None for the model's own.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        trained: Sequence[nn.Parameter],
        *,
        lr: float,
        order: str,
        schedule: str,
        max_grad_norm: float | None,
        autocast: torch.dtype | None,
    ) -> None:
        check_choice("order", order, ORDERS)
        check_choice("schedule", schedule, SCHEDULES)
        self._model = model
        self._trained = trained
        self._lr = lr
        self._order = order
        self._schedule = schedule
        self._max_grad_norm = check_limit("max_grad_norm", max_grad_norm)
        self._autocast = autocast
        self._optimizer = hullft_ops.ReplayAdam(trained, lr=lr)
        self._loss = MeanLoss(model)

    @property
    def n_full_logits(self) -> int:
        """How many passes so far needed the full logits of a text."""
        return self._loss.n_full_logits

    def share_buffers_with(self, other: "SupportTrainer") -> None:
        """Use the optimizer state of another trainer of the same parameters.

        Only one of the two may train at a time.

        Raises:
            ValueError: it trains other parameters.
        """
        if not same(self._trained, other._trained):
            raise ValueError(
                "TestTimeFinetuner: only finetuners of the same parameters can share memory, got "
                f"{len(self._trained)} and {len(other._trained)}"
            )
        self._optimizer.state = other._optimizer.state

    def steps(
        self, counts: Sequence[int], refreshes: Sequence[int], clock: StageClock
    ) -> Iterator[tuple[int, int]]:
        """Take the steps of `train`, but leave the passes to the caller.

        Whenever it yields a text and the number of steps so far, the gradients of the mean loss on
        that text must be in ``.grad`` before it goes on.
        """
        done, steps = 0, sum(counts)
        cache = hullft_ops.GradientCache(self._trained)
        for sweep in plan(counts, refreshes, self._order) if steps else ():
            if sweep.fresh:
                yield sweep.example, done
            rates = [self._rate(step, steps) for step in range(done, done + sweep.repeats)]
            self._take(sweep, cache, rates, clock)
            done += sweep.repeats
            self._optimizer.zero_grad(set_to_none=True)

    def train(
        self,
        texts: Sequence[Sequence[int]],
        indices: Sequence[int],
        counts: Sequence[int],
        refreshes: Sequence[int],
        clock: StageClock,
        deadline: float | None = None,
    ) -> tuple[list[float], list[int]]:
        """Take ``counts[i]`` steps on ``texts[i]``.

        Args:
            texts: tokens, at least 2 each.
            indices: the number that an error gives each text.
            counts: steps for each text; 0 means no pass.
            refreshes: steps per gradient for each text, at least 1.
            clock: counts the stages "forward", "backward" and "step".
            deadline: time on `perf_counter`. Training stops before a sweep that it expects to end
                later, see `Budget`. Learning rates fall as if it took all steps.

        Returns:
            The loss of every pass, and the number of steps that each text got.

        Raises:
            NonFiniteLossError: a loss is not finite.
        """
        # Even without a step, the state of the optimizer would be allocated.
        if not texts:
            return [], []
        sweeps = list(plan(counts, refreshes, self._order))
        passes: list[tuple[int, int]] = []
        # Allocated before any memory that is freed again: the moments stay, and in the gap that
        # such memory leaves they would block the next allocation of its size.
        self._optimizer.make_state()
        self._optimizer.reset()
        # Its gradients take room, so they exist only for this support.
        cache = hullft_ops.GradientCache(self._trained)
        budget = None if deadline is None else Budget(deadline, {p.device for p in self._trained})
        taken, done, steps = [0] * len(texts), 0, sum(counts)
        # The caller may be in a mode that records no gradients, as in generation.
        with (
            inference_tensors_explained(self._model),
            eval_mode(self._model),
            torch.inference_mode(False),
            torch.enable_grad(),
            fast_forwards(self._model),
        ):
            # One tensor for all losses, allocated first. A loss left where its pass put it would
            # split the memory that the next pass needs for larger activations.
            fresh = sum(sweep.fresh for sweep in sweeps)
            losses = torch.empty(fresh, dtype=torch.float64, device=self._model.device)
            tokens = [torch.tensor(text, device=self._model.device) for text in texts]
            for sweep in sweeps:
                if budget and not budget.allows(len(texts[sweep.example]), fresh=sweep.fresh):
                    break
                rates = [self._rate(step, steps) for step in range(done, done + sweep.repeats)]
                if sweep.fresh:
                    loss = self._forward(tokens[sweep.example], clock)
                    losses[len(passes)] = loss.detach()
                    passes.append((indices[sweep.example], done))
                    if self._model.device.type == "cpu":
                        check_losses([loss.item()], passes[-1:], steps)
                    self._backward(loss, sweep, cache, rates, clock)
                    del loss
                else:
                    self._take(sweep, cache, rates, clock)
                # A caller's autocast would keep using its copies of the old weights.
                torch.clear_autocast_cache()
                taken[sweep.example] += sweep.repeats
                done += sweep.repeats
            self._optimizer.zero_grad(set_to_none=True)
        # Read all losses together at the end. Reading each one would stall a GPU every time, and
        # reading none would leave the GPU's work out of the time.
        values: list[float] = losses[: len(passes)].tolist()
        check_losses(values, passes, steps)
        return values, taken

    def _forward(self, tokens: torch.Tensor, clock: StageClock) -> torch.Tensor:
        self._optimizer.zero_grad(set_to_none=True)
        with clock.of("forward"), autocasting(self._model.device, self._autocast):
            loss = self._loss(tokens)
        return checked_to_train(loss)

    def _backward(
        self,
        loss: torch.Tensor,
        sweep: Sweep,
        cache: hullft_ops.GradientCache,
        rates: Sequence[float],
        clock: StageClock,
    ) -> None:
        """Compute the gradients of the loss, and take the steps with them."""

        def take(gradients: dict[torch.Tensor, torch.Tensor]) -> None:
            with clock.of("step"):
                self._step(partial(self._optimizer.step, grads=gradients), rates)

        # Each gradient is then needed only for the steps of its own parameter. Only on the CPU:
        # nobody has measured what the additional calls cost on a GPU.
        on_cpu = self._model.device.type == "cpu"
        if on_cpu and self._max_grad_norm is None and not sweep.keep:
            with clock.of("backward"):
                backward_in_parts(loss, self._trained, take)
            return
        with clock.of("backward"):
            torch.autograd.backward(loss)
        self._take(sweep, cache, rates, clock)

    def _take(
        self,
        sweep: Sweep,
        cache: hullft_ops.GradientCache,
        rates: Sequence[float],
        clock: StageClock,
    ) -> None:
        """Take the steps of a sweep, with the gradients in ``.grad`` if it is fresh."""
        with clock.of("step"):
            if not sweep.fresh:
                self._step(partial(cache.replay, sweep.example, self._optimizer), rates)
                if not sweep.keep:
                    cache.drop(sweep.example)
                return
            if self._max_grad_norm is not None:
                nn.utils.clip_grad_norm_(self._trained, self._max_grad_norm)
            if sweep.keep:
                cache.accumulate(sweep.example, beta=0)
            self._step(self._optimizer.step, rates)

    def _rate(self, step: int, steps: int) -> float:
        return self._lr * learning_rate_factor(self._schedule, step, steps)

    def _step(self, step: Callable[..., None], rates: Sequence[float]) -> None:
        # Steps of different rates cannot share a sweep over memory.
        for rate, same in groupby(rates):
            self._optimizer.param_groups[0]["lr"] = rate
            step(repeats=len(list(same)))


def trainable_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The model's parameters that require a gradient, each once, in the model's order."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


@contextmanager
def fast_forwards(model: nn.Module) -> Iterator[None]:
    """Run the block with faster forwards: the model's own functions, up to rounding."""
    with wide_products(model), fused_activations(model):
        yield


def autocasting(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def checked_to_train(loss: torch.Tensor) -> torch.Tensor:
    if not loss.requires_grad:
        raise RuntimeError(
            "TestTimeFinetuner: the loss depends on no parameter that is trained, as of an adapter "
            "that is merged or not active"
        )
    return loss


def check_losses(
    losses: Sequence[float], passes: Sequence[tuple[int, int]], steps: int, prompt: str = ""
) -> None:
    """Raise NonFiniteLossError for a loss that is not finite.

    ``passes`` have the text of each pass, and the number of steps before it.
    """
    for loss, (index, done) in zip(losses, passes, strict=True):
        if not math.isfinite(loss):
            raise NonFiniteLossError(
                f"TestTimeFinetuner: the loss of text {index} of the datastore is {loss} at step "
                f"{done + 1} of {steps}{prompt}; the model has been restored"
            )


def checked_trained(model: "PreTrainedModel") -> list[nn.Parameter]:
    """The parameters to train, see `trainable_parameters`. Warns if they are float16.

    Raises:
        ValueError: there are none, or some are on the meta device or made in inference mode.
    """
    trained = trainable_parameters(model)
    if not trained:
        raise ValueError(
            "TestTimeFinetuner: model must have a parameter with requires_grad, got none; "
            "PEFT adapters are loaded with is_trainable=True"
        )
    absent = [n for n, p in model.named_parameters() if p.requires_grad and p.is_meta]
    if absent:
        raise ValueError(
            "TestTimeFinetuner: what is trained must have storage, "
            f"got {len(absent)} parameters on the meta device, {absent[0]} for one"
        )
    made = [n for n, p in model.named_parameters() if p.requires_grad and p.is_inference()]
    if made:
        raise ValueError(
            "TestTimeFinetuner: what is trained must be made outside of inference mode, got "
            f"{len(made)} parameters made in it, {made[0]} for one: load the model outside of "
            "torch.inference_mode()"
        )
    if any(parameter.dtype == torch.float16 for parameter in trained):
        warnings.warn(
            "TestTimeFinetuner: trained parameters are float16, in which the square of a small "
            "gradient is 0 and Adam's step far too large: load the model with dtype=torch.float32 "
            "or torch.bfloat16",
            stacklevel=3,
        )
    return trained


@contextmanager
def inference_tensors_explained(model: "PreTrainedModel") -> Iterator[None]:
    """Name the parameter that gradients cannot pass. Training after such parameters is possible."""
    try:
        yield
    except RuntimeError as error:
        made = [name for name, p in model.named_parameters() if p.is_inference()]
        if not made or "Inference tensors cannot be saved" not in str(error):
            raise
        raise RuntimeError(
            "TestTimeFinetuner: what gradients pass through must be made outside of inference "
            f"mode, got {len(made)} frozen parameters made in it, {made[0]} for one: load the "
            "model outside of torch.inference_mode()"
        ) from error


def autocast_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype | None:
    if dtype is None:
        return None
    # float16 would need its losses scaled.
    if dtype not in ("bfloat16", torch.bfloat16):
        raise ValueError(f"TestTimeFinetuner: dtype must be bfloat16 or None, got {dtype}")
    if not has_bfloat16(device):
        warnings.warn(
            "TestTimeFinetuner: this processor multiplies bfloat16 in software, far slower than "
            "float32: dtype=None is faster",
            stacklevel=3,
        )
    return torch.bfloat16


def check_limit(name: str, limit: object) -> float | None:
    if limit is None:
        return None
    number = check_number("TestTimeFinetuner", name, limit)
    if not number > 0:  # NaN too
        raise ValueError(f"TestTimeFinetuner: {name} must be above 0, got {limit}")
    return float(number)


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(
            f"TestTimeFinetuner: {name} must be one of {', '.join(choices)}, got {value!r}"
        )


def check_same_trained(model: nn.Module, trained: Sequence[nn.Parameter]) -> None:
    wanted = trainable_parameters(model)
    if not same(wanted, trained):
        raise RuntimeError(
            "TestTimeFinetuner: the model has other parameters with requires_grad than when "
            f"this finetuner was made, {len(wanted)} now and {len(trained)} then: make a "
            "new finetuner"
        )


def refreshes_of(refresh: int | Callable[[int], int], counts: Sequence[int]) -> list[int]:
    if not callable(refresh):
        return [refresh] * len(counts)
    # A text without steps has no gradient. No function should have to expect that.
    found = [refresh(count) if count else 1 for count in counts]
    return [check_integer("TestTimeFinetuner", "refresh", one, 1) for one in found]


def same(some: Sequence[object], others: Sequence[object]) -> bool:
    return [id(one) for one in some] == [id(other) for other in others]
