"""How a training pass reads a text: without a mask, and padded."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hullft_ops.ttft.model.head_loss import unscaled
from hullft_ops.ttft.model.loss import MeanLoss
from hullft_ops.ttft.model.trainer import fast_forwards

TOKENS = torch.arange(5, 29) * 7 % 320
# The host would wait for a GPU in each of these.
WAITING = ("_local_scalar_dense", "nonzero", "item", "is_nonzero", "equal", "_unique2")


class Operators(TorchDispatchMode):
    """Counts operators by name, in the backward pass too: a CPU's runs in this thread."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.counts[function.overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))


def operators_of_a_pass(model):
    mean_loss = MeanLoss(model)
    mean_loss(TOKENS)  # compares the loss with that of full logits, once
    with fast_forwards(model), Operators() as operators:
        unscaled(mean_loss(TOKENS)).backward()
    return operators.counts


@pytest.mark.parametrize(("name", "most"), [("gpt2", 245), ("llama", 520)])
def test_a_pass_waits_for_nothing(request, name, most):
    model = request.getfixturevalue(name)
    model.config.pad_token_id = 0  # transformers would look for it in the text
    counts = operators_of_a_pass(model)
    assert not counts.keys() & set(WAITING)
    assert counts.total() <= most, counts
