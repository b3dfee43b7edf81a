"""Training a model on a support: passes, replays, clipping and learning rates."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property, partial
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

import hullft_ops
from hullft_ops._checks import check_member
from hullft_ops.ttft.errors import NonFiniteLossError
from hullft_ops.ttft.model.attention import can_pad, on_device, padded, padded_length
from hullft_ops.ttft.model.context import model_limit
from hullft_ops.ttft.model.head_loss import unscaled
from hullft_ops.ttft.model.loss import MeanLoss, backward_in_parts
from hullft_ops.ttft.model.onednn import wide_products
from hullft_ops.ttft.model.patches import eval_mode, fused_activations
from hullft_ops.ttft.training.checks import (
    check_choice,
    check_limit,
    inference_tensors_explained,
    same,
)
from hullft_ops.ttft.training.graphs import PassGraphs
from hullft_ops.ttft.training.steps import (
    ORDERS,
    SCHEDULES,
    Budget,
    StageClock,
    Sweep,
    plan,
)

# Consecutive steps of one rate, and how many they are.
Runs = list[tuple[float | torch.Tensor, int]]


class SupportTrainer:
    """Adam with a fresh state for every support. All supports share its buffers.

    ``trained`` are the parameters to train, each once, ``autocast`` is the dtype of the forward
    pass; None for the model's own. The other arguments are `TestTimeFinetuner`'s.
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
        graphs: bool = True,
        on_step: Callable[[int], object] | None = None,
    ) -> None:
        check_choice("order", order, ORDERS)
        check_choice("schedule", schedule, tuple(SCHEDULES))
        if on_step is not None:
            kind = "a function of the number of steps"
            check_member("TestTimeFinetuner", "on_step", on_step, "__call__", kind)
        self._model = model
        self._trained = trained
        self._lr = lr
        self._order = order
        self._factor = SCHEDULES[schedule]
        self._max_grad_norm = check_limit("max_grad_norm", max_grad_norm)
        self._autocast = autocast
        self._on_step = on_step or (lambda steps: None)
        self._optimizer = hullft_ops.ReplayAdam(trained, lr=lr)
        self._loss = MeanLoss(model)
        # How many passes so far needed the full logits of a text.
        self.n_full_logits = 0
        self._may_capture = graphs
        # Of the runs in a pass. A graph reads them where they are.
        self._rates: list[torch.Tensor] = []

    @cached_property
    def graphs(self) -> PassGraphs | None:
        """On CUDA the captured passes, unless they are turned off."""
        on_cuda = self._model.device.type == "cuda"
        return PassGraphs(self._model, self._trained) if on_cuda and self._may_capture else None

    @cached_property
    def _is_padded(self) -> bool:
        return self._model.device.type == "cuda" and can_pad(self._model)

    def share_buffers_with(self, other: "SupportTrainer") -> None:
        """Use the optimizer state of another trainer of these parameters. One trains at a time."""
        if not same(self._trained, other._trained):
            raise ValueError(
                "TestTimeFinetuner: only finetuners of the same parameters can share memory, got "
                f"{len(self._trained)} and {len(other._trained)}"
            )
        self._optimizer.state = other._optimizer.state

    def steps(
        self, counts: Sequence[int], refreshes: Sequence[int], clock: StageClock
    ) -> Iterator[tuple[int, int]]:
        """Take the steps of `train`. It yields each text to read and the number of steps so far;
        the gradients of the text's mean loss must be in ``.grad`` before it goes on."""
        done, steps = 0, sum(counts)
        cache = hullft_ops.GradientCache(self._trained)
        for sweep in plan(counts, refreshes, self._order):
            if sweep.fresh:
                yield sweep.example, done
            self._take(sweep, cache, self._runs(done, sweep.repeats, steps), clock)
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
        """Take ``counts[i]`` steps on the tokens ``texts[i]``, ``refreshes[i]`` with each gradient.

        An error names a text by ``indices``. The clock counts the stages "forward", "backward" and
        "step". ``deadline`` is that of a `Budget`; learning rates fall as if there were none.
        Returns the loss of every pass, and the number of steps that each text got.
        NonFiniteLossError if a loss is not finite.
        """
        # Even without a step, the state of the optimizer would be allocated.
        if not texts:
            return [], []
        sweeps = list(plan(counts, refreshes, self._order))
        # Allocated before any memory that is freed again: the moments stay, and in the gap that
        # such memory leaves they would block the next allocation of its size.
        self._check_moments()
        self._optimizer.param_groups[0]["capturable"] = self.graphs is not None
        self._optimizer.make_state()
        self._optimizer.reset()
        graphs = self.graphs if self.graphs and self.graphs.can_serve(self._optimizer) else None
        # Its gradients take room, so they exist only for this support.
        cache = hullft_ops.GradientCache(self._trained)
        budget = None if deadline is None else Budget(deadline, {p.device for p in self._trained})
        passes: list[tuple[int, int]] = []
        taken, done, steps, device = [0] * len(texts), 0, sum(counts), self._model.device
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
            losses = torch.empty(fresh, dtype=torch.float64, device=device)
            tokens = on_device(self._padded(texts), device)
            self._on_step(0)
            for sweep in sweeps:
                if budget and not budget.allows(len(texts[sweep.example]), fresh=sweep.fresh):
                    break
                runs = self._runs(done, sweep.repeats, steps)
                if sweep.fresh:
                    text = tokens[sweep.example]
                    passes.append((indices[sweep.example], done))
                    one_pass = partial(self._pass, sweep=sweep, cache=cache)
                    if graphs is None or sweep.keep:
                        loss = one_pass(text, clock, runs=runs)
                    else:
                        kind = (len(text), *(repeats for _, repeats in runs))
                        one_pass = partial(one_pass, runs=self._in_tensors(runs))
                        loss = graphs.run(kind, text, one_pass, clock)
                    losses[len(passes) - 1] = loss
                    # The loss does not see the replay of a graph, but it does see a capture.
                    self.n_full_logits += self._loss.is_full
                    # Elsewhere, looking would stall the device.
                    if device.type == "cpu":
                        check_losses([loss.item()], passes[-1:], steps)
                else:
                    self._take(sweep, cache, runs, clock)
                # A caller's autocast would keep using its copies of the old weights.
                torch.clear_autocast_cache()
                taken[sweep.example] += sweep.repeats
                done += sweep.repeats
                self._on_step(done)
        # Read all losses together at the end. Reading each one would stall a GPU every time, and
        # reading none would leave the GPU's work out of the time.
        values: list[float] = losses[: len(passes)].tolist()
        check_losses(values, passes, steps)
        return values, taken

    def _check_moments(self) -> None:
        for parameter, state in self._optimizer.state.items():
            # An interrupt may have left a state empty.
            moment = state.get("exp_avg", parameter)
            now, then = ((t.dtype, t.device) for t in (parameter, moment))
            if now != then:
                raise RuntimeError(
                    "TestTimeFinetuner: the model was moved or cast after this finetuner's first "
                    f"adaptation, from {then[0]} on {then[1]} to {now[0]} on {now[1]}: make a new "
                    "finetuner"
                )

    def _in_tensors(self, runs: Runs) -> Runs:
        """The runs with their rates in tensors that stay where they are."""
        device = self._model.device
        while len(self._rates) < len(runs):
            self._rates.append(torch.zeros((), dtype=torch.float64, device=device))
        rates = self._rates[: len(runs)]
        for tensor, (rate, _) in zip(rates, runs, strict=True):
            tensor.fill_(rate)
        return [(tensor, repeats) for tensor, (_, repeats) in zip(rates, runs, strict=True)]

    def _padded(self, texts: Sequence[Sequence[int]]) -> Sequence[Sequence[int]]:
        if not self._is_padded:
            return texts
        context = model_limit("TestTimeFinetuner", self._model)
        return [padded(text, padded_length(len(text), context)) for text in texts]

    def _pass(
        self,
        tokens: torch.Tensor,
        clock: StageClock,
        *,
        sweep: Sweep,
        cache: hullft_ops.GradientCache,
        runs: Runs,
    ) -> torch.Tensor:
        """The loss of a text, after the steps with its gradient. Leaves no gradients."""

        def take(gradients: dict[torch.Tensor, torch.Tensor]) -> None:
            with clock.of("step"):
                self._step(partial(self._optimizer.step, grads=gradients), runs)

        self._optimizer.zero_grad(set_to_none=True)
        with clock.of("forward"), autocasting(self._model.device, self._autocast):
            loss = unscaled((self._loss.of_padded if self._is_padded else self._loss)(tokens))
        checked_to_train(loss)
        # Each gradient is then needed only for the steps of its own parameter. Only on the CPU:
        # nobody has measured what the additional calls cost on a GPU.
        if loss.device.type == "cpu" and self._max_grad_norm is None and not sweep.keep:
            with clock.of("backward"):
                backward_in_parts(loss, self._trained, take)
        else:
            with clock.of("backward"):
                torch.autograd.backward(loss)
            self._take(sweep, cache, runs, clock)
        self._optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def _take(
        self, sweep: Sweep, cache: hullft_ops.GradientCache, runs: Runs, clock: StageClock
    ) -> None:
        """Take the steps of a sweep, with the gradients in ``.grad`` if it is fresh."""
        with clock.of("step"):
            if not sweep.fresh:
                self._step(partial(cache.replay, sweep.example, self._optimizer), runs)
                if not sweep.keep:
                    cache.drop(sweep.example)
                return
            if self._max_grad_norm is not None:
                nn.utils.clip_grad_norm_(self._trained, self._max_grad_norm)
            if sweep.keep:
                cache.accumulate(sweep.example, beta=0)
            self._step(self._optimizer.step, runs)

    def _runs(self, done: int, repeats: int, steps: int) -> Runs:
        """The rates of the next ``repeats`` of all steps."""
        rates = (self._rate(step, steps) for step in range(done, done + repeats))
        # Steps of different rates cannot share a sweep over memory.
        return [(rate, len(list(equal))) for rate, equal in groupby(rates)]

    def _rate(self, step: int, steps: int) -> float:
        return self._lr * self._factor(step, steps)

    def _step(self, step: Callable[..., None], runs: Runs) -> None:
        for rate, repeats in runs:
            self._optimizer.param_groups[0]["lr"] = rate
            step(repeats=repeats)


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
            "TestTimeFinetuner: the loss depends on no parameter that is trained: is an adapter "
            "merged or not active?"
        )
    return loss


def check_losses(
    losses: Sequence[float], passes: Sequence[tuple[int, int]], steps: int, prompt: str = ""
) -> None:
    """Refuse a loss that is not finite. ``passes`` have their texts, and the steps before each."""
    for loss, (index, done) in zip(losses, passes, strict=True):
        if not math.isfinite(loss):
            raise NonFiniteLossError(
                f"TestTimeFinetuner: the loss of text {index} of the datastore is {loss} at step "
                f"{done + 1} of {steps}{prompt}; the model has been restored"
            )
