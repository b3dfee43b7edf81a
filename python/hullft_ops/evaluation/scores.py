"""What an evaluation scores. A new metric is a name and a line here."""

from collections.abc import Callable

from hullft_ops.evaluation.prompts import Prompt
from hullft_ops.ttft.scoring import BitsPerByte

# What a report calls each score. Less is better.
TITLES = {"prompt": "bits per byte of the prompt"}


def scores_of(prompt: Prompt, score: Callable[..., BitsPerByte]) -> dict[str, float]:
    """The scores by name, where ``score`` takes the arguments of `Adaptation.score`."""
    return {"prompt": score(prompt.text).value}
