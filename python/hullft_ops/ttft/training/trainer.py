"""Training a model on a support: passes, replays, clipping and learning rates."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import KW_ONLY, dataclass
from functools import cached_property, partial
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

from hullft_ops import GradientCache, ReplayAdam
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
Runs = list[tuple[float | Tensor, int]]


@dataclass(eq=False, repr=False)
class SupportTrainer:
    """Adam with a fresh state for every support. All supports share its buffers.

    ``trained`` are the parameters to train, each once, ``autocast`` is the dtype of the forward
    pass; None for the model's own. The other arguments are `TestTimeFinetuner`'s.
    """

    model: "PreTrainedModel"
    trained: Sequence[nn.Parameter]
    _: KW_ONLY
    lr: float
    order: str
    schedule: str
    max_grad_norm: float | None
    autocast: torch.dtype | None
    graphs: bool = True
    on_step: Callable[[int], object] | None = None

    def __post_init__(self) -> None:
        check_choice("order", self.order, ORDERS)
        check_choice("schedule", self.schedule, tuple(SCHEDULES))
        if self.on_step is not None:
            kind = "a function of the number of steps"
            check_member("TestTimeFinetuner", "on_step", self.on_step, "__call__", kind)
        self.max_grad_norm = check_limit("max_grad_norm", self.max_grad_norm)
        self._optimizer = ReplayAdam(self.trained, lr=self.lr)
        self._loss = MeanLoss(self.model)
        # How many passes so far needed the full logits of a text.
        self.n_full_logits = 0
        # Of the runs in a pass. A graph reads them where they are.
        self._rates: list[Tensor] = []

    @cached_property
    def pass_graphs(self) -> PassGraphs | None:
        """On CUDA the captured passes, unless they are turned off."""
        on_cuda = self.model.device.type == "cuda"
        return PassGraphs(self.model, self.trained) if on_cuda and self.graphs else None

    @cached_property
    def _is_padded(self) -> bool:
        return self.model.device.type == "cuda" and can_pad(self.model)

    def share_buffers_with(self, other: "SupportTrainer") -> None:
        """Use the optimizer state of another trainer of these parameters. One trains at a time."""
        if [*map(id, self.trained)] != [*map(id, other.trained)]:
            raise ValueError(
                "TestTimeFinetuner: only finetuners of the same parameters can share memory, got "
                f"{len(self.trained)} and {len(other.trained)}"
            )
        self._optimizer.state = other._optimizer.state

    def steps(
        self, counts: Sequence[int], refreshes: Sequence[int], clock: StageClock
    ) -> Iterator[tuple[int, int]]:
        """Take the steps of `train`. It yields each text to read and the number of steps so far;
        the gradients of the text's mean loss must be in ``.grad`` before it goes on."""
        cache = GradientCache(self.trained)
        for sweep, done, runs in self._sweeps(counts, refreshes):
            if sweep.fresh:
                yield sweep.example, done
            self._take(sweep, cache, runs, clock)
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

        An error names a text by ``indices``. ``deadline`` is that of a `Budget`; learning rates
        fall as if there were none. Returns the loss of every pass, and the steps on each text.
        NonFiniteLossError if a loss is not finite.
        """
        # Even without a step, the state of the optimizer would be allocated.
        if not texts:
            return [], []
        # Allocated before any memory that is freed again: the moments stay, and in the gap that
        # such memory leaves they would block the next allocation of its size.
        self._check_moments()
        graphs = self.pass_graphs
        self._optimizer.param_groups[0]["capturable"] = graphs is not None
        self._optimizer.make_state()
        self._optimizer.reset()
        if graphs and not graphs.can_serve(self._optimizer):
            graphs = None
        # Its gradients take room, so they exist only for this support.
        cache = GradientCache(self.trained)
        budget = (
            None
            if deadline is None
            else Budget(deadline, {p.device for p in self.trained})
        )
        on_step = self.on_step or (lambda steps: None)
        passes: list[tuple[int, int]] = []
        taken, steps, device = [0] * len(texts), sum(counts), self.model.device
        # The caller may be in a mode that records no gradients, as in generation.
        with (
            inference_tensors_explained(self.model),
            eval_mode(self.model),
            torch.inference_mode(False),
            torch.enable_grad(),
            fast_forwards(self.model),
        ):
            # One tensor for all losses, allocated first. A loss left where its pass put it would
            # split the memory that the next pass needs for larger activations.
            sweeps = list(self._sweeps(counts, refreshes))
            fresh = sum(sweep.fresh for sweep, _, _ in sweeps)
            losses = torch.empty(fresh, dtype=torch.float64, device=device)
            tokens = on_device(self._padded(texts), device)
            on_step(0)
            for sweep, done, runs in sweeps:
                if budget and not budget.allows(
                    len(texts[sweep.example]), fresh=sweep.fresh
                ):
                    break
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
                on_step(done + sweep.repeats)
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
        for _ in runs[len(self._rates) :]:
            self._rates.append(
                torch.zeros((), dtype=torch.float64, device=self.model.device)
            )
        held = zip(self._rates, runs, strict=False)
        return [(tensor.fill_(rate), repeats) for tensor, (rate, repeats) in held]

    def _padded(self, texts: Sequence[Sequence[int]]) -> Sequence[Sequence[int]]:
        if not self._is_padded:
            return texts
        context = model_limit("TestTimeFinetuner", self.model)
        return [padded(text, padded_length(len(text), context)) for text in texts]

    def _pass(
        self,
        tokens: Tensor,
        clock: StageClock,
        *,
        sweep: Sweep,
        cache: GradientCache,
        runs: Runs,
    ) -> Tensor:
        """The loss of a text, after the steps with its gradient. Leaves no gradients."""

        def take(gradients: dict[Tensor, Tensor]) -> None:
            with clock.of("step"):
                self._step(partial(self._optimizer.step, grads=gradients), runs)

        self._optimizer.zero_grad(set_to_none=True)
        with clock.of("forward"), autocasting(self.model.device, self.autocast):
            loss = unscaled(
                (self._loss.of_padded if self._is_padded else self._loss)(tokens)
            )
        checked_to_train(loss)
        # Each gradient is then needed only for the steps of its own parameter. Only on the CPU:
        # nobody has measured what the additional calls cost on a GPU.
        if loss.device.type == "cpu" and self.max_grad_norm is None and not sweep.keep:
            with clock.of("backward"):
                backward_in_parts(loss, self.trained, take)
        else:
            with clock.of("backward"):
                torch.autograd.backward(loss)
            self._take(sweep, cache, runs, clock)
        self._optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def _take(
        self, sweep: Sweep, cache: GradientCache, runs: Runs, clock: StageClock
    ) -> None:
        """Take the steps of a sweep, with the gradients in ``.grad`` if it is fresh."""
        with clock.of("step"):
            if not sweep.fresh:
                self._step(partial(cache.replay, sweep.example, self._optimizer), runs)
                if not sweep.keep:
                    cache.drop(sweep.example)
                return
            if self.max_grad_norm is not None:
                nn.utils.clip_grad_norm_(self.trained, self.max_grad_norm)
            if sweep.keep:
                cache.accumulate(sweep.example, beta=0)
            self._step(self._optimizer.step, runs)

    def _sweeps(
        self, counts: Sequence[int], refreshes: Sequence[int]
    ) -> Iterator[tuple[Sweep, int, Runs]]:
        """Each sweep, the number of steps before it, and its learning rates."""
        done, steps, factor = 0, sum(counts), SCHEDULES[self.schedule]
        for sweep in plan(counts, refreshes, self.order):
            end = done + sweep.repeats
            rates = (self.lr * factor(step, steps) for step in range(done, end))
            # Steps of different rates cannot share a sweep over memory.
            yield (
                sweep,
                done,
                [(rate, len(list(equal))) for rate, equal in groupby(rates)],
            )
            done = end

    def _step(self, step: Callable[..., None], runs: Runs) -> None:
        for rate, repeats in runs:
            self._optimizer.param_groups[0]["lr"] = rate
            step(repeats=repeats)


@contextmanager
def fast_forwards(model: nn.Module) -> Iterator[None]:
    """Run the block with faster forwards: the model's own functions, up to rounding."""
    with wide_products(model), fused_activations(model):
        yield


def autocasting(
    device: torch.device, dtype: torch.dtype | None
) -> AbstractContextManager[object]:
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def checked_to_train(loss: Tensor) -> Tensor:
    if not loss.requires_grad:
        raise RuntimeError(
            "TestTimeFinetuner: the loss depends on no parameter that is trained: is an adapter "
            "merged or not active?"
        )
    return loss


def check_losses(
    losses: Sequence[float],
    passes: Sequence[tuple[int, int]],
    steps: int,
    prompt: str = "",
) -> None:
    """Refuse a loss that is not finite. ``passes`` have their texts, and the steps before each."""
    for loss, (index, done) in zip(losses, passes, strict=True):
        if not math.isfinite(loss):
            raise NonFiniteLossError(
                f"TestTimeFinetuner: the loss of text {index} of the datastore is {loss} at step "
                f"{done + 1} of {steps}{prompt}; the model has been restored"
            )
