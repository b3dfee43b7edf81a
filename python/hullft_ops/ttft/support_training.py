"""Training an adapter for each of many supports."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

from hullft_ops.ttft.model.exclusive import Claim
from hullft_ops.ttft.model.snapshot import put
from hullft_ops.ttft.report import AdaptationReport
from hullft_ops.ttft.retrieval.support import Support
from hullft_ops.ttft.training.checks import inference_tensors_explained, refreshes_of
from hullft_ops.ttft.training.lora_slots import LoraSlots
from hullft_ops.ttft.training.steps import StageClock
from hullft_ops.ttft.training.trainer import check_losses


@dataclass(frozen=True, eq=False)
class TrainedAdapter:
    """A prompt's adapter, from `TestTimeFinetuner.adapt_many`.

    `TestTimeFinetuner.adapted` takes it in place of the prompt, any number of times. Inside the
    block the model has this adapter: score it, continue the prompt, save it.

    Attributes:
        support: the texts that it was trained on.
        report: what the training did. Seconds are the prompt's share of its batch.
        parameters: its values, in the order of the model's trained parameters.
    """

    support: Support
    report: AdaptationReport
    parameters: Sequence[torch.Tensor]

    def put_into(
        self, trained: Sequence[nn.Parameter], save: Callable[[], None], clock: StageClock
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
            slots = LoraSlots(model, trained, **settings)
        for first in range(0, len(supports), batch_size):
            batch = supports[first : first + batch_size]
            adapters += _train_batch(slots, batch, first, reported)
    return adapters


def _train_batch(
    slots: LoraSlots,
    supports: Sequence[Support],
    first: int,
    reported: Mapping[str, Any],
) -> list[TrainedAdapter]:
    clock, start, before = StageClock(slots.device), perf_counter(), slots.n_full_logits
    texts, counts = [one.input_ids for one in supports], [one.counts for one in supports]
    refreshes = [refreshes_of(reported["refresh"], own) for own in counts]
    trained = slots.train(texts, counts, refreshes, clock)
    losses = [torch.stack(slot.losses).tolist() if slot.losses else [] for slot in trained]
    seconds = (perf_counter() - start) / len(supports)
    adapters = []
    for i, (support, slot) in enumerate(zip(supports, trained, strict=True)):
        passes = [(support.indices[text], done) for text, done in slot.passes]
        check_losses(losses[i], passes, sum(support.counts), f" for prompts[{first + i}]")
        report = AdaptationReport.of(
            support,
            clock,
            losses[i],
            list(support.counts),
            refreshes[i],
            share=len(supports),
            seconds_finetune=seconds + support.seconds.tokenize,
            full_logits_passes=len(losses[i]) if slots.n_full_logits > before else 0,
            **reported,
        )
        adapters.append(TrainedAdapter(support, report, [p.detach() for p in slot.parameters]))
    return adapters
