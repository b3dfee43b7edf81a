"""Training the LoRAs of many prompts side by side, each row of a batch through its own."""

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

from hullft_ops.ttft.model.loss import MeanLoss
from hullft_ops.ttft.training.steps import StageClock
from hullft_ops.ttft.training.trainer import (
    SupportTrainer,
    autocasting,
    checked_to_train,
    fast_forwards,
)

# A row may be padded by so many tokens to join a batch. A pass of the tiny model or of SmolLM2-135M
# on one CPU thread takes as long as some 40 tokens more do, however short its text is.
_MOST_PADDING = 32


@dataclass(eq=False)
class Slot:
    """A prompt's LoRA, its passes so far, and the ``steps`` of its trainer.

    ``text`` is the one to read next; it is empty once all steps are taken.
    """

    parameters: Sequence[nn.Parameter]
    steps: Iterator[tuple[int, int]]
    texts: Sequence[Sequence[int]]
    text: Sequence[int] = ()
    passes: list[tuple[int, int]] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)

    def go_on(self) -> None:
        """Take the steps with the gradients in ``.grad``, if any, up to the next pass."""
        self.text = ()
        for position, done in islice(self.steps, 1):
            self.text = self.texts[position]
            self.passes.append((position, done))


class LoraSlots:
    """A copy of a PEFT model in which each row of a batch goes through a LoRA of its own.

    The copy shares the frozen weights, and other threads may use the model meanwhile. Each LoRA
    begins with the values of ``trained``. The other arguments are `SupportTrainer`'s. ValueError if
    other parameters than those of plain LoRAs of linear layers are trained.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        trained: Sequence[nn.Parameter],
        *,
        autocast: torch.dtype | None,
        **settings: Any,
    ) -> None:
        begun = {id(p): nn.Parameter(p.detach().clone(), requires_grad=False) for p in trained}
        shared: dict[int, Any] = {id(p): p for p in model.parameters()}
        self._model = copy.deepcopy(model, shared | begun).train(False)
        self._begun = list(begun.values())
        self.device: torch.device = self._model.device
        self._autocast = autocast
        self._settings = settings | {"autocast": autocast}
        self._loss = MeanLoss(self._model)
        self._rows: list[Slot] = []
        self._replace_products()

    @property
    def n_full_logits(self) -> int:
        """How many passes of a prompt so far needed the full logits of a text."""
        return self._loss.n_full_logits

    def train(
        self,
        texts: Sequence[Sequence[Sequence[int]]],
        counts: Sequence[Sequence[int]],
        refreshes: Sequence[Sequence[int]],
        clock: StageClock,
    ) -> list[Slot]:
        """Take ``counts[b][i]`` steps of prompt b on ``texts[b][i]``, as `SupportTrainer` would."""
        with torch.enable_grad(), fast_forwards(self._model):
            slots = []
            for own, steps, reuse in zip(texts, counts, refreshes, strict=True):
                parameters = [nn.Parameter(begun.clone()) for begun in self._begun]
                trainer = SupportTrainer(self._model, parameters, **self._settings)
                slots.append(Slot(parameters, trainer.steps(steps, reuse, clock), own))
                slots[-1].go_on()
            while waiting := [slot for slot in slots if slot.text]:
                for rows in _batches(waiting):
                    self._pass(rows, clock)
        return slots

    def _pass(self, rows: list[Slot], clock: StageClock) -> None:
        """Read the next text of each. Its loss reaches only the LoRA of its row."""
        self._rows = rows
        lengths = [len(row.text) for row in rows]
        # Behind a text stands its last token: a causal model does not see it.
        padded = [[*row.text, *[row.text[-1]] * (max(lengths) - len(row.text))] for row in rows]
        tokens = torch.tensor(padded, device=self.device)
        with clock.of("forward"), autocasting(self.device, self._autocast):
            losses = self._loss.of_rows(tokens, lengths)
        with clock.of("backward"):
            torch.autograd.backward(checked_to_train(torch.stack(losses).sum()))
        for row, loss in zip(rows, losses, strict=True):
            row.losses.append(loss.detach())
            row.go_on()

    def _replace_products(self) -> None:
        positions = {id(begun): i for i, begun in enumerate(self._begun)}
        others = {id(p): name for name, p in self._model.named_parameters() if id(p) in positions}
        for factor in _factors(self._model):
            if id(factor.weight) in positions:
                vars(factor)["forward"] = partial(self._product, positions[id(factor.weight)])
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


def _batches(slots: Iterable[Slot]) -> Iterator[list[Slot]]:
    """Slots whose texts have similar lengths, so that little is padded."""
    batch: list[Slot] = []
    for slot in sorted(slots, key=lambda slot: len(slot.text), reverse=True):
        if batch and len(batch[0].text) - len(slot.text) > _MOST_PADDING:
            yield batch
            batch = []
        batch.append(slot)
    yield batch
