"""backward_in_parts against torch's own backward pass."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from hullft_ops.ttft.model import loss as loss_module
from hullft_ops.ttft.model.loss import MeanLoss, backward_in_parts

TOKENS = torch.arange(1, 30)


@pytest.fixture(autouse=True)
def _one_at_a_time(monkeypatch):
    monkeypatch.setattr(loss_module, "_SHARE", 0.0)


def gradients_of(model):
    MeanLoss(model)(TOKENS).backward()
    wanted = {parameter: parameter.grad for parameter in model.parameters()}
    model.zero_grad(set_to_none=True)
    return wanted


def assert_nothing_left(parameters):
    for parameter in parameters:
        assert parameter.grad is None
        assert not parameter._post_accumulate_grad_hooks


def test_every_gradient_comes_once_and_whole(model):
    """The embedding of GPT-2 is its head as well: a gradient in two parts."""
    wanted, parameters, taken = gradients_of(model), list(model.parameters()), []
    for parameter in parameters:
        assert (wanted[parameter] != 0).any()

    def take(gradients):
        for parameter, gradient in gradients.items():
            assert parameter.grad is None
            assert torch.equal(gradient, wanted[parameter])
            taken.append(parameter)

    backward_in_parts(MeanLoss(model)(TOKENS), parameters, take)
    assert len(taken) == len(parameters)
    assert set(taken) == set(parameters)
    assert_nothing_left(parameters)


def test_parameters_may_change_meanwhile(model):
    wanted, calls = gradients_of(model), []

    def spoil(gradients):
        calls.append(len(gradients))
        with torch.no_grad():
            for parameter, gradient in gradients.items():
                assert torch.equal(gradient, wanted[parameter])
                parameter.fill_(float("nan"))

    backward_in_parts(MeanLoss(model)(TOKENS), list(model.parameters()), spoil)
    assert calls == [1] * len(wanted)
    assert all(parameter.isnan().all() for parameter in model.parameters())


@pytest.mark.parametrize("least", [0, 5000, 10**9])
def test_what_is_handed_over_is_large_enough(model, monkeypatch, least):
    monkeypatch.setattr(loss_module, "_LEAST_BYTES", least)
    sizes = []

    def take(gradients):
        sizes.append(sum(gradient.nbytes for gradient in gradients.values()))

    backward_in_parts(MeanLoss(model)(TOKENS), list(model.parameters()), take)
    assert all(size >= least for size in sizes[:-1])
    assert sum(sizes) == sum(parameter.nbytes for parameter in model.parameters())


def test_other_leaves_keep_their_gradients():
    ours, theirs = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    taken = []
    backward_in_parts((ours * theirs).sum(), [ours], taken.append)
    assert [list(gradients) for gradients in taken] == [[ours]]
    assert torch.equal(theirs.grad, torch.ones(3))


def test_a_gradient_that_somebody_else_puts_there_is_taken_too():
    seen, hidden = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    seen.register_hook(lambda _: setattr(hidden, "grad", torch.full((3,), 2.0)))
    taken = {}
    backward_in_parts((2 * seen).sum(), [hidden, seen], taken.update)
    assert set(taken) == {seen, hidden}
    assert torch.equal(taken[hidden], torch.full((3,), 2.0))
    assert hidden.grad is None


def test_without_a_gradient_nothing_is_taken():
    used, unused = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    backward_in_parts(used.sum(), [unused], lambda _: pytest.fail("nothing to take"))
    assert_nothing_left([unused])


def test_an_error_leaves_no_hook(model):
    def fail(gradients):
        raise KeyError("no")

    with pytest.raises(KeyError, match="no"):
        backward_in_parts(MeanLoss(model)(TOKENS), list(model.parameters()), fail)
    for parameter in model.parameters():
        assert not parameter._post_accumulate_grad_hooks


def test_a_change_that_would_spoil_the_pass_is_an_error():
    """The first weight is used again where autograd cannot know that it belongs to it."""
    weight, first = torch.eye(3, requires_grad=True), torch.ones(3, requires_grad=True)
    hidden = (first * 2) @ weight.detach() @ torch.eye(3)
    loss = (hidden * (torch.ones(3) @ weight)).sum()

    def change(gradients):
        with torch.no_grad():
            for parameter in gradients:
                parameter.zero_()

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        backward_in_parts(loss, [weight, first], change)


def test_a_gradient_in_pieces_is_an_error():
    """Reentrant checkpoints each have a backward pass of their own."""
    weight = torch.eye(3, requires_grad=True)
    inputs = torch.ones(3, requires_grad=True)
    hidden = inputs
    for _ in range(2):
        hidden = checkpoint(lambda x: x @ weight, hidden, use_reentrant=True)
    with pytest.raises(
        RuntimeError, match=r"parameter \[3, 3\] in pieces, .*max_grad_norm=math.inf"
    ):
        backward_in_parts(hidden.sum(), [weight], lambda gradients: None)
    assert not weight._post_accumulate_grad_hooks
