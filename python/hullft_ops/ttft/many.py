"""Training the LoRAs of many prompts side by side, each row of a batch through its own."""

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

from hullft_ops.ttft.config import TTFTConfig
from hullft_ops.ttft.lock import exclusive
from hullft_ops.ttft.loss import MeanLoss
from hullft_ops.ttft.precision import autocast
from hullft_ops.ttft.steps import StageClock, Sweep
from hullft_ops.ttft.support import Support
from hullft_ops.ttft.training import (
    SupportTrainer,
    check_depends,
    check_losses,
    training_mode,
)

# A row may be padded by so many tokens to join a batch. A pass of the toy or of SmolLM2-135M on one
# CPU thread takes as long as some 40 tokens more do, however short its text is.
_MOST_PADDING = 32


@dataclass(frozen=True, eq=False)
class TrainedAdapter:
    """A prompt's adapter, from `TestTimeFinetuner.adapt_many`.

    `TestTimeFinetuner.adapted` takes it in place of the prompt, any number of times.

    Attributes:
        support: the passages that it was trained on.
        losses: the mean loss of each pass, in nats.
        seconds: seconds by stage, the prompt's share of its batch.
        parameters: its values, in the order of the model's trained parameters.
        model: identity of the model around it.
    """

    support: Support
    losses: list[float]
    seconds: dict[str, float]
    parameters: Sequence[Tensor] = field(repr=False)
    model: str = ""


def train_adapters(
    model: "PreTrainedModel",
    trained: Sequence[nn.Parameter],
    config: TTFTConfig,
    supports: Sequence[Support],
    batch_size: int,
) -> list[TrainedAdapter]:
    """Train an adapter on each support, ``batch_size`` at a time, on a copy of the model."""
    adapters: list[TrainedAdapter] = []
    with torch.inference_mode(False):
        with exclusive(model, unadapted=True):
            slots = LoraSlots(model, trained, config)
        for first in range(0, len(supports), batch_size):
            batch = supports[first : first + batch_size]
            adapters += slots.train(batch, first)
    return adapters


@dataclass(eq=False)
class _Slot:
    """A support, its LoRA, and the sweep that waits for a gradient; None after the last."""

    support: Support
    parameters: Sequence[nn.Parameter]
    sweeps: Iterator[Sweep]
    sweep: Sweep | None = None
    passes: list[Sweep] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)

    def advance(self) -> None:
        """Take the steps with the gradients in ``.grad``, if any, up to the next pass."""
        self.sweep = next(self.sweeps, None)
        if self.sweep is not None:
            self.passes.append(self.sweep)

    @property
    def text(self) -> list[int]:
        """The tokens that the next pass reads."""
        return [] if self.sweep is None else self.support.input_ids[self.sweep.passage]


class LoraSlots:
    """A copy of a PEFT model in which each row of a batch goes through a LoRA of its own.

    The copy shares the frozen weights, and other threads may use the model meanwhile. Each LoRA
    begins with the values of ``trained``. ValueError if other parameters than those of plain LoRAs
    of linear layers are trained.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        trained: Sequence[nn.Parameter],
        config: TTFTConfig,
    ) -> None:
        starts = {}
        for parameter in trained:
            start = nn.Parameter(parameter.detach().clone(), requires_grad=False)
            starts[id(parameter)] = start
        shared: dict[int, Any] = {id(p): p for p in model.parameters()}
        self._model = copy.deepcopy(model, shared | starts).train(False)
        self._starts = list(starts.values())
        self._config = config
        self._loss = MeanLoss(self._model)
        self._rows: list[_Slot] = []
        self._replace_products()

    def train(self, supports: Sequence[Support], first: int) -> list[TrainedAdapter]:
        """Take a `SupportTrainer`'s steps on the supports of the prompts from ``first`` on."""
        clock = StageClock(self._model.device)
        with clock.of("finetune"), training_mode(self._model):
            slots = [self._slot(support, clock) for support in supports]
            while waiting := [slot for slot in slots if slot.sweep is not None]:
                for rows in _batches(waiting):
                    self._pass(rows, clock)
        adapters = []
        for i, slot in enumerate(slots):
            losses = [loss.item() for loss in slot.losses]
            check_losses(
                losses, slot.passes, slot.support, f" for prompts[{first + i}]"
            )
            seconds = {s: total / len(slots) for s, total in clock.seconds().items()}
            parameters = [parameter.detach() for parameter in slot.parameters]
            adapter = TrainedAdapter(slot.support, losses, seconds, parameters)
            adapters.append(adapter)
        return adapters

    def _slot(self, support: Support, clock: StageClock) -> _Slot:
        parameters = [nn.Parameter(start.clone()) for start in self._starts]
        trainer = SupportTrainer(self._model, parameters, self._config)
        slot = _Slot(support, parameters, trainer.steps(support.counts, clock))
        slot.advance()
        return slot

    def _pass(self, rows: list[_Slot], clock: StageClock) -> None:
        """Read the next text of each. Its loss reaches only the LoRA of its row."""
        self._rows = rows
        lengths = [len(row.text) for row in rows]
        padded = []
        for row in rows:
            # Behind a text stands its last token: a causal model does not see it.
            padding = [row.text[-1]] * (max(lengths) - len(row.text))
            padded.append([*row.text, *padding])
        device = self._model.device
        tokens = torch.tensor(padded, device=device)
        with clock.of("forward"), autocast(device, self._config.dtype):
            losses = self._loss.of_rows(tokens, lengths)
        total = torch.stack(losses).sum()
        check_depends(total)
        with clock.of("backward"):
            torch.autograd.backward(total)
        for row, loss in zip(rows, losses, strict=True):
            row.losses.append(loss.detach())
            row.advance()

    def _replace_products(self) -> None:
        positions = {id(start): i for i, start in enumerate(self._starts)}
        others = {
            id(parameter): name
            for name, parameter in self._model.named_parameters()
            if id(parameter) in positions
        }
        for factor in _factors(self._model):
            if id(factor.weight) in positions:
                position = positions[id(factor.weight)]
                vars(factor)["forward"] = partial(self._product, position)
                others.pop(id(factor.weight), None)
        if others:
            raise ValueError(
                "adapt_many: trained parameters must be plain LoRAs of linear layers, as PEFT's "
                f"get_peft_model makes them, got {len(others)} other parameters, "
                f"for example {next(iter(others.values()))}"
            )

    def _product(self, position: int, x: Tensor) -> Tensor:
        if len(self._rows) == 1:
            # A batched product of one matrix takes longer.
            return nn.functional.linear(x, self._rows[0].parameters[position])
        if x.dim() < 3 or len(x) != len(self._rows):
            raise RuntimeError(
                "adapt_many: each layer with a LoRA must get a row for each of "
                f"{len(self._rows)} prompts, [B, T, in], got {list(x.shape)}"
            )
        factors = torch.stack([row.parameters[position] for row in self._rows])
        product: Tensor = x.flatten(1, -2) @ factors.mT
        return product.view(*x.shape[:-1], -1)


def _factors(model: nn.Module) -> Iterator[nn.Linear]:
    """The linear layers whose product is all that a LoRA needs of its factors."""
    if not getattr(model, "peft_config", None):
        return
    from peft.tuners.lora import Linear

    for layer in model.modules():
        # A subclass or a variant, such as DoRA, may read the weights.
        if type(layer) is Linear and not layer.lora_variant:
            for factor in (*layer.lora_A.values(), *layer.lora_B.values()):
                if type(factor) is nn.Linear and factor.bias is None:
                    yield factor


def _batches(slots: Iterable[_Slot]) -> Iterator[list[_Slot]]:
    """Slots whose texts have similar lengths, so that little is padded."""
    batch: list[_Slot] = []
    for slot in sorted(slots, key=lambda slot: len(slot.text), reverse=True):
        if batch and len(batch[0].text) - len(slot.text) > _MOST_PADDING:
            yield batch
            batch = []
        batch.append(slot)
    yield batch
