"""The loss to train on, against autograd on full logits."""

import pytest
import torch
from torch import nn

from hullft_ops.ttft import loss as loss_module
from hullft_ops.ttft.loss import MeanLoss, head_loss, next_token_losses

TOKENS = torch.arange(5, 35) * 7 % 320


def loss_and_gradients(model, loss):
    model.zero_grad()
    loss.backward()
    gradients = {}

    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            gradients[name] = parameter.grad.clone()

    return loss.detach(), gradients


def assert_same(model, actual, expected, tolerance):
    loss, gradients = loss_and_gradients(model, actual)
    whole, others = loss_and_gradients(model, expected)

    assert gradients.keys() == others.keys()
    assert abs(loss - whole) <= tolerance * whole

    for name, other in others.items():
        bound = tolerance * max(other.norm(), 1e-3)
        assert (gradients[name] - other).norm() <= bound, name


def assert_equals_full_logits(model, tolerance, *, mean_loss=None, is_full=False):
    mean_loss = mean_loss or MeanLoss(model)
    head = model.get_output_embeddings()
    # Not a LoRA of it.
    if isinstance(head, nn.Linear):
        head.requires_grad_(False)

    actual = mean_loss(TOKENS)

    assert mean_loss.is_full == is_full

    expected = next_token_losses(model, TOKENS).mean()
    assert_same(model, actual, expected, tolerance)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        (torch.float64, 1e-13),
        (torch.float32, 2e-6),
    ],
)
@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_it_is_the_models_own_loss(model, monkeypatch, dtype, tolerance, rows):
    monkeypatch.setattr(loss_module, "_CHUNK_BYTES", rows * 320 * 4)
    assert_equals_full_logits(model.to(dtype), tolerance)

    theirs = model(input_ids=TOKENS[None], labels=TOKENS[None]).loss

    assert MeanLoss(model)(TOKENS).item() == pytest.approx(theirs.item(), rel=1e-6)


class Scaled(nn.Linear):
    def forward(self, x):
        return super().forward(x) / 8


def test_a_head_that_does_more_keeps_its_logits(llama, with_lora):
    mean_loss = MeanLoss(llama.double())
    assert_equals_full_logits(llama, 1e-13, mean_loss=mean_loss)

    llama.lm_head = Scaled(16, 320).double()
    assert_equals_full_logits(llama, 0, mean_loss=mean_loss, is_full=True)

    llama.lm_head = nn.Linear(16, 320).double()
    assert_equals_full_logits(llama, 1e-13, mean_loss=mean_loss)

    llama.config.final_logit_softcapping = 30.0
    assert_equals_full_logits(llama, 0, is_full=True)

    llama.config.final_logit_softcapping = None
    model = with_lora(llama, target_modules=["lm_head"]).double()

    assert_equals_full_logits(model, 0, is_full=True)


def test_a_head_that_is_trained_keeps_its_logits(gpt2):
    mean_loss = MeanLoss(gpt2)
    actual = mean_loss(TOKENS)

    assert mean_loss.is_full

    assert_same(gpt2, actual, next_token_losses(gpt2, TOKENS).mean(), 0)


def test_a_head_with_another_forward_is_called(llama):
    forward = llama.lm_head.forward
    llama.lm_head.forward = lambda hidden: 2 * forward(hidden)
    assert_equals_full_logits(llama, 0, is_full=True)


@pytest.mark.parametrize("vocabulary", [1, 5, 1024, 2050])
@pytest.mark.parametrize("rows", [3, 9])
def test_a_head_of_any_vocabulary_in_any_chunks(vocabulary, rows):
    torch.manual_seed(0)
    head = nn.Linear(4, vocabulary, dtype=torch.float64)
    hidden = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    targets = torch.arange(9) * 7 % vocabulary
    loss = head_loss(hidden, head.weight.detach(), head.bias.detach(), targets, rows)
    whole = nn.functional.cross_entropy(head(hidden), targets)

    torch.testing.assert_close(loss, whole)

    [gradient], [other] = [torch.autograd.grad(each, hidden) for each in (loss, whole)]

    torch.testing.assert_close(gradient, other, rtol=1e-12, atol=1e-15)
