"""How a training pass reads a text: without a mask, and padded."""

from collections import Counter

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from hullft_ops.ttft.model.attention import (
    can_pad,
    padded,
    padded_length,
    without_marks,
)
from hullft_ops.ttft.model.head_loss import unscaled
from hullft_ops.ttft.model.loss import MeanLoss, next_token_losses
from hullft_ops.ttft.training.trainer import fast_forwards

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


@pytest.mark.parametrize(
    ("dtype", "most"), [(torch.float32, 1e-6), (torch.float64, 1e-12)]
)
@pytest.mark.parametrize("length", [25, 32])
def test_padding_changes_neither_loss_nor_gradients(model, dtype, most, length):
    model.to(dtype)
    mean_loss = MeanLoss(model)
    wanted = loss_and_gradients(model, mean_loss(TOKENS))
    text = torch.tensor(padded(TOKENS.tolist(), length))
    found = loss_and_gradients(model, mean_loss.of_padded(text))
    assert not mean_loss.is_full
    for one, other in zip(found, wanted, strict=True):
        assert (one - other).norm() <= most * other.norm()


def test_padding_changes_nothing_with_a_models_own_logits(gpt2):
    gpt2.double().register_forward_hook(lambda *_: None)
    mean_loss = MeanLoss(gpt2)
    text = torch.tensor(padded(TOKENS.tolist(), 32))
    pairs = zip(
        loss_and_gradients(gpt2, mean_loss.of_padded(text)),
        loss_and_gradients(gpt2, mean_loss(TOKENS)),
        strict=True,
    )
    assert mean_loss.is_full
    for one, other in pairs:
        assert (one - other).norm() <= 1e-12 * other.norm()


def loss_and_gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return [loss.detach(), *(parameter.grad for parameter in model.parameters())]


@pytest.mark.parametrize(
    ("length", "context", "wanted"),
    [(2, None, 64), (64, None, 64), (65, 1024, 128), (100, 120, 120), (120, 120, 120)],
)
def test_padded_lengths_are_few_and_within_the_context(length, context, wanted):
    assert padded_length(length, context) == wanted
    text = torch.tensor(padded([7] * (length - 1) + [9], wanted))
    tokens, shares = without_marks(text)
    assert tokens.tolist() == [7] * (length - 1) + [9] * (wanted - length + 1)
    assert shares[: length - 1].tolist() == [1 / (length - 1)] * (length - 1)
    assert shares[length - 1 :].tolist() == [0] * (wanted - length)


SIZES = {
    "vocab_size": 320,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
}
SIZES |= {
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def dynamic_rope():
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    return LlamaForCausalLM(LlamaConfig(**SIZES, rope_parameters=rope))


def sliding_window():
    return MistralForCausalLM(MistralConfig(**SIZES, sliding_window=16))


@pytest.mark.parametrize("make_model", [dynamic_rope, sliding_window])
def test_a_model_that_depends_on_the_length_is_not_padded(make_model):
    assert not can_pad(make_model())


def test_a_model_with_adapters_is_padded(gpt2):
    assert can_pad(get_peft_model(gpt2, LoraConfig(target_modules=["c_attn"])))


def test_a_window_stays_without_a_mask_from_us():
    """The model makes its own mask for a text that is longer than its window."""
    torch.manual_seed(0)
    model = sliding_window().double().eval()
    wanted = loss_and_gradients(model, next_token_losses(model, TOKENS).mean())
    mean_loss = MeanLoss(model)
    for one, other in zip(
        loss_and_gradients(model, mean_loss(TOKENS)), wanted, strict=True
    ):
        assert (one - other).norm() <= 1e-12 * other.norm()
    assert not mean_loss.is_full
