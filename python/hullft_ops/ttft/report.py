"""What one adaptation did and where its time went."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass
class AdaptationReport:
    """What one adaptation did, in plain numbers.

    Seconds are wall-clock. On CUDA those of ``save``, ``forward``, ``backward`` and ``step`` are
    the GPU's own, from events in its stream: measuring never waits for it.

    Attributes:
        method, n_select, order: as the finetuner was given them, the method by its name.
        refresh: optimizer steps per gradient; a list, one for each text, where a function gave it.
        support_size: number of different texts.
        indices: their positions in the datastore, largest weight first.
        weights: their convex weights.
        counts: optimizer steps for each; the sum is ``n_select``, or as many as there are texts
            where a method takes one step on each and there are fewer.
        residual: distance from the prompt's embedding to the weighted mean.
        gap: Frank-Wolfe gap over the pool.
        seconds_embed: to embed the prompt (a prompt's share of its batch, as the next two),
        seconds_search: to find its neighbours,
        seconds_select: to select among them,
        seconds_finetune: to tokenize the support and train; the next four are parts of it,
        seconds_tokenize: to read the chosen texts and tokenize those not seen lately,
        seconds_forward: for the losses,
        seconds_backward: for the gradients,
        seconds_step: to clip them, to take the optimizer steps and to keep gradients for later,
        seconds_save: to save the parameters before,
        seconds_restore: to put the model back. None until the with block is left, and on CUDA,
            where the work is only handed to the GPU.
        forward_backward_passes: gradients computed.
        optimizer_steps: Adam steps taken, replays included.
        losses: mean loss per token, in nats, of each pass in order.
        full_logits_passes: passes that made the logits of a whole text at once, which takes more
            memory: all of them for a head that is more than a linear layer, or that is listened to.
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

    def to_dict(self) -> dict[str, Any]:
        """The same, as a dictionary that `json.dumps` takes."""
        return asdict(self)
