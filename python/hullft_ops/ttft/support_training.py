"""Training the LoRAs of many prompts side by side, each row of a batch through its own."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

from hullft_ops.ttft.model.exclusive import Claim
from hullft_ops.ttft.model.loss import MeanLoss
from hullft_ops.ttft.model.snapshot import put
from hullft_ops.ttft.report import AdaptationReport
from hullft_ops.ttft.retrieval.support import Support
from hullft_ops.ttft.training.checks import inference_tensors_explained
from hullft_ops.ttft.training.steps import StageClock, refreshes_of
from hullft_ops.ttft.training.trainer import (
    SupportTrainer,
    autocasting,
    check_losses,
    checked_to_train,
    fast_forwards,
)

# A row may be padded by so many tokens to join a batch. A pass of the tiny model or of SmolLM2-135M
# on one CPU thread takes as long as some 40 tokens more do, however short its text is.
_MOST_PADDING = 32


@dataclass(frozen=True, eq=False)
class TrainedAdapter:
    """A prompt's adapter, from `TestTimeFinetuner.adapt_many`.

    `TestTimeFinetuner.adapted` takes it in place of the prompt, any number of times.

    Attributes:
        support: the texts that it was trained on.
        report: what the training did. Seconds are the prompt's share of its batch.
        parameters: its values, in the order of the model's trained parameters.
    """

    support: Support
    report: AdaptationReport
    parameters: Sequence[Tensor]

    def put_into(
        self,
        trained: Sequence[nn.Parameter],
        save: Callable[[], None],
        clock: StageClock,
    ) -> AdaptationReport:
        """Call ``save``, and copy the adapter into ``trained``; ValueError if it does not fit."""
        shapes, wanted = ([p.shape for p in own] for own in (self.parameters, trained))
        if shapes != wanted:
            raise ValueError(
                "TestTimeFinetuner: the adapter must be one of this finetuner's model, got "
                f"{len(shapes)} parameters of other shapes than the {len(wanted)} that are trained"
            )
        with clock.of("save"):
            save()
        put(self.parameters, trained)
        return replace(self.report, seconds_save=clock.seconds("save"))


def train_adapters(
    model: "PreTrainedModel",
    trained: Sequence[nn.Parameter],
    settings: Mapping[str, Any],
    supports: Sequence[Support],
    batch_size: int,
    **reported: Any,
) -> list[TrainedAdapter]:
    """Train them ``batch_size`` at a time, with these settings of the `SupportTrainer`."""
    adapters: list[TrainedAdapter] = []
    with torch.inference_mode(False), inference_tensors_explained(model):
        with Claim(model, trained):
            slots = LoraSlots(model, trained, settings)
        for first in range(0, len(supports), batch_size):
            adapters += slots.train(
                supports[first : first + batch_size], first, reported
            )
    return adapters


@dataclass(eq=False)
class _Slot:
    """A support, its LoRA, its trainer's ``steps``, and the next text; empty after the last."""

    support: Support
    refreshes: list[int]
    parameters: Sequence[nn.Parameter]
    steps: Iterator[tuple[int, int]]
    text: Sequence[int] = ()
    passes: list[tuple[int, int]] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)

    def go_on(self) -> None:
        """Take the steps with the gradients in ``.grad``, if any, up to the next pass."""
        self.text = ()
        for position, done in islice(self.steps, 1):
            self.text = self.support.input_ids[position]
            self.passes.append((self.support.indices[position], done))


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
        settings: Mapping[str, Any],
    ) -> None:
        begun = {
            id(p): nn.Parameter(p.detach().clone(), requires_grad=False)
            for p in trained
        }
        shared: dict[int, Any] = {id(p): p for p in model.parameters()}
        self._model = copy.deepcopy(model, shared | begun).train(False)
        self._begun = list(begun.values())
        self._settings = settings
        self._loss = MeanLoss(self._model)
        self._rows: list[_Slot] = []
        self._replace_products()

    def train(
        self, supports: Sequence[Support], first: int, reported: Mapping[str, Any]
    ) -> Iterator[TrainedAdapter]:
        """Take a `SupportTrainer`'s steps on the supports of the prompts from ``first`` on."""
        clock, start = StageClock(self._model.device), perf_counter()
        with torch.enable_grad(), fast_forwards(self._model):
            slots = [self._slot(support, clock, reported) for support in supports]
            while waiting := [slot for slot in slots if slot.text]:
                for rows in _batches(waiting):
                    self._pass(rows, clock)
        losses = [[loss.item() for loss in slot.losses] for slot in slots]
        seconds = (perf_counter() - start) / len(slots)
        for i, (slot, own) in enumerate(zip(slots, losses, strict=True), first):
            counts = slot.support.counts
            check_losses(own, slot.passes, sum(counts), f" for prompts[{i}]")
            report = AdaptationReport.of(
                slot.support,
                clock,
                own,
                list(counts),
                slot.refreshes,
                share=len(slots),
                seconds=seconds,
                full_logits_passes=len(own) if self._loss.is_full else 0,
                **reported,
            )
            yield TrainedAdapter(
                slot.support, report, [p.detach() for p in slot.parameters]
            )

    def _slot(
        self, support: Support, clock: StageClock, reported: Mapping[str, Any]
    ) -> _Slot:
        parameters = [nn.Parameter(begun.clone()) for begun in self._begun]
        refreshes = refreshes_of(reported["refresh"], support.counts)
        trainer = SupportTrainer(self._model, parameters, **self._settings)
        steps = trainer.steps(support.counts, refreshes, clock)
        slot = _Slot(support, refreshes, parameters, steps)
        slot.go_on()
        return slot

    def _pass(self, rows: list[_Slot], clock: StageClock) -> None:
        """Read the next text of each. Its loss reaches only the LoRA of its row."""
        self._rows = rows
        device, lengths = self._model.device, [len(row.text) for row in rows]
        # Behind a text stands its last token: a causal model does not see it.
        padded = [
            [*row.text, *[row.text[-1]] * (max(lengths) - len(row.text))]
            for row in rows
        ]
        tokens = torch.tensor(padded, device=device)
        with clock.of("forward"), autocasting(device, self._settings["autocast"]):
            losses = self._loss.of_rows(tokens, lengths)
        with clock.of("backward"):
            torch.autograd.backward(checked_to_train(torch.stack(losses).sum()))
        for row, loss in zip(rows, losses, strict=True):
            row.losses.append(loss.detach())
            row.go_on()

    def _replace_products(self) -> None:
        positions = {id(begun): i for i, begun in enumerate(self._begun)}
        others = {
            id(p): name
            for name, p in self._model.named_parameters()
            if id(p) in positions
        }
        for factor in _factors(self._model):
            if id(factor.weight) in positions:
                vars(factor)["forward"] = partial(
                    self._product, positions[id(factor.weight)]
                )
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
