"""What an evaluation scores. A new metric is a name and a line here."""

from collections.abc import Callable
from contextlib import suppress

from hullft_ops.evaluation.prompts import Prompt
from hullft_ops.ttft.errors import NothingToScoreError
from hullft_ops.ttft.scoring import BitsPerByte

# What a report calls each score, and what it tells. Less is better. It compares by the first that
# every row has.
TITLES = {
    "continuation": "bits per byte of the continuation",
    "prompt": "bits per byte of the prompt",
}
MEANINGS = {
    "continuation": (
        "The continuation comes after the prompt, and no method sees it: its bits tell how much "
        "better the answer gets."
    ),
    "prompt": (
        "The prompt is what the methods adapt to: its bits tell how closely the model then fits it."
    ),
}


def scores_of(
    prompt: Prompt, score: Callable[..., BitsPerByte], *, is_seen: bool = False
) -> dict[str, float]:
    """The scores by name, where ``score`` takes the arguments of `Adaptation.score`.

    A model that was trained on the prompt, ``is_seen``, has no score of it.
    """
    scores = {}
    if not is_seen:
        # A prompt of one token has no score.
        with suppress(NothingToScoreError):
            scores["prompt"] = score(prompt.text).value
    if prompt.continuation is not None:
        scores["continuation"] = score(prompt.continuation, after=prompt.text).value
    return scores
