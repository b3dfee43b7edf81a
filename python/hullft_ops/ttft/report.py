"""The report of an adaptation: what it did and where its time went."""

from dataclasses import asdict, dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hullft_ops.ttft.model.steps import StageClock
    from hullft_ops.ttft.retrieval.support import Support

_STAGES = ("save", "forward", "backward", "step", "prefill")


@dataclass
class AdaptationReport:
    """What one adaptation did, in plain numbers.

    Seconds are wall-clock. On CUDA those of ``save``, ``forward``, ``backward``, ``step`` and
    ``prefill`` come from events in the GPU's stream, so measuring never waits for the GPU.

    Attributes:
        method, n_select, order: the finetuner's arguments, the method by its name.
        refresh: optimizer steps per gradient; a list with one number per text if the finetuner got
            a function.
        support_size: number of different texts.
        indices: their positions in the datastore, largest weight first.
        weights: their convex weights.
        counts: optimizer steps chosen for each text. The sum is ``n_select``, or the number of
            texts if that is smaller and the method takes one step on each.
        residual: distance from the prompt's embedding to the weighted mean; its length without
            steps.
        gap: Frank-Wolfe gap over the pool.
        seconds_embed: to embed the prompt. This and the next two are a prompt's share of its batch.
        seconds_search: to find its neighbours.
        seconds_select: to select among them.
        seconds_finetune: to tokenize the support and train. The next four are parts of it.
        seconds_tokenize: to read the chosen texts and tokenize those that are not cached.
        seconds_forward: for the losses.
        seconds_backward: for the gradients.
        seconds_step: to clip gradients, take the optimizer steps and keep gradients for later.
        seconds_prefill: to read the texts in the context once, after training.
        seconds_save: to save the parameters before.
        seconds_restore: to restore the model. None until the with block ends, and on CUDA, where
            the work is only handed to the GPU.
        forward_backward_passes: how many gradients were computed.
        optimizer_steps: how many Adam steps were taken, including replays.
        steps_taken: those on each text. They equal ``counts`` unless a budget in seconds ended the
            training.
        steps_left_out: how many steps did not fit into the budget.
        losses: mean loss per token, in nats, of each pass in order.
        full_logits_passes: passes that stored the logits of a whole text, which takes more memory.
            All passes do if the head is more than a linear layer, or somebody listens to it.
        context_indices: positions of the texts that stand before the prompt, nearest last.
        prefix_ids: their tokens, to pass to `bits_per_byte`.
    """

    method: str
    n_select: int
    refresh: int | list[int]
    support_size: int
    indices: list[int]
    weights: list[float]
    counts: list[int]
    residual: float
    gap: float
    seconds_embed: float
    seconds_search: float
    seconds_select: float
    seconds_finetune: float
    forward_backward_passes: int
    optimizer_steps: int
    losses: list[float]
    order: str = "grouped"
    seconds_tokenize: float = 0.0
    seconds_forward: float = 0.0
    seconds_backward: float = 0.0
    seconds_step: float = 0.0
    seconds_save: float = 0.0
    seconds_restore: float | None = None
    full_logits_passes: int = 0
    steps_taken: list[int] = field(default_factory=list)
    steps_left_out: int = 0
    context_indices: list[int] = field(default_factory=list)
    prefix_ids: list[int] = field(default_factory=list)
    seconds_prefill: float = 0.0

    @classmethod
    def of(cls, support: "Support", clock: "StageClock", **others: Any) -> "AdaptationReport":
        """A report with what the support and the clock say, and the ``others``."""
        spent = support.seconds
        others |= {f"seconds_{stage}": clock.seconds(stage) for stage in _STAGES}
        return cls(
            support_size=len(support.indices),
            indices=support.indices,
            weights=support.weights,
            counts=support.counts,
            residual=support.residual,
            gap=support.gap,
            seconds_embed=spent.embed,
            seconds_search=spent.search,
            seconds_select=spent.select,
            seconds_tokenize=spent.tokenize,
            context_indices=support.context_indices,
            prefix_ids=list(chain.from_iterable(support.context_ids)),
            **others,
        )

    def to_dict(self) -> dict[str, Any]:
        """The report as a dictionary for `json.dumps`."""
        return asdict(self)
