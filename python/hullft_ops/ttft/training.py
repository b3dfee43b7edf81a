"""Training a model for a prompt: passes and steps."""

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

import psutil
import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

from hullft_ops import ReplayAdam
from hullft_ops.ttft.loss import MeanLoss, NonFiniteLossError
from hullft_ops.ttft.models.precision import ReadingOptions, autocast
from hullft_ops.ttft.models.weights import rate_scales, trained_parameters
from hullft_ops.ttft.restore import at_exit, eval_mode
from hullft_ops.ttft.validation import options_class

# Selection and training hold memory for each step.
MAX_STEPS = 100_000
# A causal loss needs a token and a next one.
MIN_TOKENS = 2

# Steps are taken when so many gradients are complete: a share of their bytes, and at least so many.
# The call of a step on one small parameter may cost more than its work.
_SHARE = 1 / 16
_LEAST_BYTES = 8 * 2**20


@options_class
class TrainingOptions(ReadingOptions):
    """How to take optimizer steps."""

    lr: PositiveFloat = 2.5e-4
    """Adam's learning rate, as a share of the root mean square of each matrix's weights."""

    refresh: PositiveInt = 2
    """Optimizer steps with each gradient. A passage with c steps takes ceil(c / refresh)
    forward-backward passes."""

    passes: PositiveInt | None = None
    """Forward-backward passes at most; None for as many as the steps need."""


@dataclass(frozen=True)
class Pass:
    """A forward-backward pass on a text, and the consecutive steps with its gradient.

    Attributes:
        ids: the tokens of the text, at least 2.
        repeats: how many steps.
        position: of the text in the datastore; None for the prompt.
    """

    ids: Sequence[int]
    repeats: int
    position: int | None = None


class Trainable:
    """What is trained of a model: one optimizer and one copy serve every prompt and all options.

    Attributes:
        model: the model.
        parameters: what is trained of it; see `trained_parameters`.
        copies: memory for their copies.
    """

    def __init__(self, model: "PreTrainedModel") -> None:
        self.model = model
        self.parameters = _checked_parameters(model)
        self.copies: list[Tensor] = []
        scales = rate_scales(model, self.parameters)
        group = {"params": self.parameters, "lr_scales": scales}
        # Rounding to nearest would lose most steps of bfloat16 parameters.
        self.optimizer = ReplayAdam([group], rounding_seed=0)
        self.loss = MeanLoss(model)

    @property
    def size(self) -> int:
        """Bytes of what is trained."""
        return sum(parameter.nbytes for parameter in self.parameters)

    def check_memory(self, *, trains: bool) -> None:
        """MemoryError if what is still to be allocated does not fit into the CPU's memory."""
        needed = 0.0 if self.copies else self.size
        if trains and not self.optimizer.state:
            # Two moments, and the gradients of a part.
            needed += (2 + _SHARE) * self.size
        available = psutil.virtual_memory().available
        on_cpu = self.model.device.type == "cpu"
        if on_cpu and needed > available:
            raise MemoryError(
                f"adapting needs {needed / 1e9:.1f} GB beside the model, and "
                f"{available / 1e9:.1f} GB are free"
            )

    def freeze_others(self) -> None:
        """No gradients of what is not trained; `restored` puts the flags back."""
        self.model.requires_grad_(False)
        for parameter in self.parameters:
            parameter.requires_grad_(True)


class Deadline:
    """Tells before each pass whether it fits into a budget of seconds, counted from now; None for
    no limit.

    It expects a pass, with its steps, to take as long as the slowest one so far, and
    proportionally longer on a longer passage.
    """

    def __init__(self, seconds: float | None) -> None:
        seconds = math.inf if seconds is None else seconds
        if not seconds > 0:  # NaN too
            raise ValueError(f"adapted: seconds must be above 0, got {seconds}")
        self._end = perf_counter() + seconds
        # The seconds of the slowest pass, and the tokens of its passage.
        self._slowest = (0.0, 1)
        self._running: tuple[float, int] | None = None

    def begin(self, tokens: int) -> bool:
        """Whether a pass on a passage of so many tokens may start now. If so, it must."""
        now = perf_counter()
        if self._running is not None:
            start, length = self._running
            self._slowest = max(self._slowest, (now - start, length))
        self._running = now, tokens
        seconds, length = self._slowest
        expected = seconds * max(1.0, tokens / length)
        return now < self._end and now + expected <= self._end


@dataclass
class Training:
    """Optimizer steps for one prompt, with a fresh state of Adam.

    Attributes:
        trainable: what to train.
        options: rate, autocast and how many passes at most.
        deadline: ends the training before a pass that it does not allow.
        losses: the mean loss of each pass, in nats.
        trained_on: these passes.
        skipped_steps: steps that did not fit into the budget of seconds or passes.
    """

    trainable: Trainable
    options: TrainingOptions
    deadline: Deadline
    losses: list[float] = field(default_factory=list)
    trained_on: list[Pass] = field(default_factory=list)
    skipped_steps: int = 0

    def take(self, passes: Sequence[Pass]) -> list[Pass]:
        """Take the steps of these passes, as many as the budget allows, and return those passes.

        Raises:
            NonFiniteLossError: a loss is not finite.
            ValueError: the model is quantized.
        """
        if not passes:
            return []
        count = len(self.trained_on)
        optimizer, model = self.trainable.optimizer, self.trainable.model
        if getattr(model, "is_quantized", False):
            raise ValueError(
                "TestTimeFinetuner: model must not be quantized to take steps"
            )
        if not self.trained_on:
            # The moments stay, so they are allocated before any memory that is freed again.
            optimizer.make_state()
            optimizer.reset()
            self.trainable.freeze_others()
        for group in optimizer.param_groups:
            group["lr"] = self.options.lr
        # Record gradients in eval mode, whatever mode the caller is in.
        with (
            eval_mode(model),
            torch.inference_mode(False),
            torch.enable_grad(),
        ):
            for current in passes:
                if not self._has_budget(current):
                    self.skipped_steps += current.repeats
                    continue
                tokens = torch.tensor(current.ids, device=model.device)
                # Waits for the pass, whose time the deadline counts.
                loss = self._pass(tokens, current.repeats).item()
                self._check_loss(loss, current)
                self.losses.append(loss)
                self.trained_on.append(current)
                # A caller's autocast would keep using its copies of the old weights.
                torch.clear_autocast_cache()
        return self.trained_on[count:]

    def _has_budget(self, current: Pass) -> bool:
        limit = self.options.passes
        if self.skipped_steps or (limit is not None and len(self.trained_on) >= limit):
            return False
        return self.deadline.begin(len(current.ids))

    def _pass(self, tokens: Tensor, repeats: int) -> Tensor:
        """The loss of a text, after the steps with its gradient."""
        optimizer = self.trainable.optimizer
        optimizer.zero_grad(set_to_none=True)
        with autocast(self.trainable.model.device, self.options.dtype):
            loss = self.trainable.loss(tokens)
        if not loss.requires_grad:
            raise RuntimeError(
                "TestTimeFinetuner: the loss depends on no parameter that is trained: is an "
                "adapter merged or not active?"
            )
        # On a GPU, many small steps would cost more than the memory that they save.
        if self.trainable.model.device.type == "cpu":
            self._step_amid_backward(loss, repeats)
        else:
            torch.autograd.backward(loss)
            optimizer.step(repeats=repeats)
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def _step_amid_backward(self, loss: Tensor, repeats: int) -> None:
        """Take steps as soon as some gradients are complete, and drop these gradients.

        By then, whatever multiplies by their parameters on the way back has done so. Autograd
        raises where another use is left.
        """
        trained, optimizer = self.trainable.parameters, self.trainable.optimizer
        enough = max(_SHARE * self.trainable.size, _LEAST_BYTES)
        gradients: dict[Tensor, Tensor] = {}

        def step() -> None:
            optimizer.step(repeats=repeats, grads=gradients)
            gradients.clear()

        def add(parameter: Tensor) -> None:
            if parameter.grad is not None:
                gradients[parameter], parameter.grad = parameter.grad, None
            if sum(gradient.nbytes for gradient in gradients.values()) >= enough:
                step()

        handles: list[Any] = []
        with at_exit(partial(_remove, handles)):
            for parameter in trained:
                handle = parameter.register_post_accumulate_grad_hook(add)  # type: ignore[no-untyped-call]
                handles.append(handle)
            torch.autograd.backward(loss)
        step()

    def _check_loss(self, loss: float, current: Pass) -> None:
        """Refuse a loss that is not finite."""
        if not math.isfinite(loss):
            name = "the prompt"
            if current.position is not None:
                name = f"passage {current.position} of the datastore"
            step = 1 + sum(each.repeats for each in self.trained_on)
            raise NonFiniteLossError(
                f"TestTimeFinetuner: the loss of {name} is {loss} at step {step}"
            )


def passes_of(
    ids: Sequence[int], steps: int, refresh: int, position: int | None = None
) -> list[Pass]:
    """The passes on a text, one for every ``refresh`` steps."""
    return [
        Pass(ids, min(refresh, steps - start), position)
        for start in range(0, steps, refresh)
    ]


def _checked_parameters(model: "PreTrainedModel") -> list[nn.Parameter]:
    """What is trained of a model. Warns if it is float16."""
    named = trained_parameters(model)
    if not named:
        raise ValueError(
            "TestTimeFinetuner: model must have a parameter with requires_grad, got none; PEFT "
            "adapters are loaded with is_trainable=True"
        )
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise ValueError(
                f"TestTimeFinetuner: model must have its weights, {name} is on the meta device"
            )
    for name, parameter in named.items():
        if parameter.dtype == torch.float16:
            warnings.warn(
                f"TestTimeFinetuner: {name} is float16, in which the square of a small gradient is "
                "0 and Adam's step far too large: load the model in bfloat16 or float32",
                stacklevel=4,
            )
            break
    return list(named.values())


def _remove(handles: Iterable[Any]) -> None:
    for handle in handles:
        handle.remove()
