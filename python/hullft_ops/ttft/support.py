"""The passages to finetune on for a prompt."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Support:
    """The passages that a model is trained on for a prompt, largest weight first.

    Attributes:
        indices: positions in the datastore.
        weights: the convex weights; "knn" gives equal ones.
        counts: optimizer steps on each passage. Their sum is less than was asked for if the method
            is "knn" and the pool is smaller, or a passage has no next token to train on. "hullft"
            may leave a passage without a step, even a heavy one, to keep the mean over the steps
            near the prompt.
        residual: distance from the prompt's embedding to the weighted mean; its norm without
            passages.
        gap: Frank-Wolfe gap over the pool.
        input_ids: the tokens of each passage, cut to ``max_length``.
        seconds: wall-clock time to select them.
    """

    indices: list[int]
    weights: list[float]
    counts: list[int]
    residual: float
    gap: float
    input_ids: list[list[int]] = field(default_factory=list)
    seconds: float = field(default=0.0, compare=False)
