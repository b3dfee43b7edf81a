"""The identity of a model depends on every value, and on nothing else."""

import copy

import pytest
import torch

from hullft_ops.ttft.identity import model_identity


def test_equal_models_have_one_identity(model):
    identity = model_identity(model)
    assert len(identity) == 64
    assert model_identity(copy.deepcopy(model)) == identity

    weight = next(model.parameters())
    # Other strides, the same values.
    weight.data = weight.data.T.contiguous().T
    assert model_identity(model.train().requires_grad_(False)) == identity


@pytest.mark.parametrize("position", [0, -1])
def test_any_value_changes_it(model, position):
    model.register_buffer("steps", torch.zeros(3, dtype=torch.bfloat16))
    identities = {model_identity(model)}
    tensors = model.state_dict().values()

    for tensor in tensors:
        tensor.view(-1)[position] += 1
        identities.add(model_identity(model))

    assert len(identities) == 1 + len(tensors)


def test_so_do_names_and_dtypes(gpt2):
    identities = {model_identity(gpt2), model_identity(gpt2.bfloat16())}
    gpt2.register_buffer("one", torch.zeros(1))
    identities.add(model_identity(gpt2))
    gpt2.register_buffer("another", gpt2.one)
    del gpt2.one
    identities.add(model_identity(gpt2))

    assert len(identities) == 4
