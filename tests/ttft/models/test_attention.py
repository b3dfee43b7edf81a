"""How a training pass reads a text: without a mask, and padded."""

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from hullft_ops.ttft.loss import MeanLoss
from hullft_ops.ttft.models.attention import (
    can_pad,
    padded,
    padded_length,
    without_marks,
)

TOKENS = torch.arange(5, 29) * 7 % 320


def loss_and_gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return [loss.detach(), *(parameter.grad for parameter in model.parameters())]


def assert_same(model, actual, expected):
    values = loss_and_gradients(model, actual)
    others = loss_and_gradients(model, expected)
    for value, other in zip(values, others, strict=True):
        assert (value - other).norm() <= 1e-12 * other.norm()


@pytest.mark.parametrize("is_full", [False, True])
@pytest.mark.parametrize("length", [25, 32])
def test_padding_changes_neither_loss_nor_gradients(model, length, is_full):
    if is_full:
        model.register_forward_hook(lambda *_: None)

    mean_loss = MeanLoss(model.double())
    text = torch.tensor(padded(TOKENS.tolist(), length))

    assert_same(model, mean_loss.of_padded(text), mean_loss(TOKENS))
    assert mean_loss.is_full == is_full


@pytest.mark.parametrize(
    ("length", "context", "expected"),
    [(2, None, 64), (64, None, 64), (65, 1024, 128), (100, 120, 120), (120, 120, 120)],
)
def test_padded_lengths_are_few_and_within_the_context(length, context, expected):
    assert padded_length(length, context) == expected

    tokens, shares = without_marks(torch.tensor(padded([7] * length, expected)))

    assert tokens.tolist() == [7] * expected
    assert shares[: length - 1].tolist() == [1 / (length - 1)] * (length - 1)
    assert shares[length - 1 :].tolist() == [0] * (expected - length)


@pytest.fixture
def sliding_window():
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=320,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        sliding_window=16,
    )
    return MistralForCausalLM(config).double().eval()


def test_a_model_that_depends_on_the_length_is_not_padded(
    gpt2, llama, dynamic_llama, sliding_window, with_lora
):
    assert can_pad(gpt2)
    assert can_pad(with_lora(llama))
    assert not can_pad(dynamic_llama)
    assert not can_pad(sliding_window)
