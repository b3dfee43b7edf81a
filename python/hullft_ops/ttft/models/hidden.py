"""The last hidden states of a model, beside its logits."""

import threading
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from hullft_ops.ttft.restore import at_exit, block, unwrapped


class HiddenStates(threading.local):
    """What a model's output embeddings read in this thread's latest pass.

    Attributes:
        latest: ``[B, T, d]``; None if no pass was seen since it was taken.
    """

    latest: Tensor | None = None

    def pop(self, count: int = 1) -> Tensor | None:
        """The states of the last positions, ``[B, count, d]``, once for each pass."""
        latest, self.latest = self.latest, None
        return None if latest is None else latest[:, -count:]


@block
def seen_hidden_states(model: Any, *, is_needed: bool) -> Iterator[HiddenStates]:
    """See the hidden states of the model's passes in the body, except of compiled passes."""
    states = HiddenStates()

    def see(head: Any, inputs: tuple[Tensor, ...]) -> None:
        states.latest = inputs[0]

    head: Any = unwrapped(model).get_output_embeddings()  # type: ignore[no-untyped-call]
    if head is None or not is_needed:
        yield states
        return
    handle = head.register_forward_pre_hook(see)
    with at_exit(handle.remove):
        yield states
