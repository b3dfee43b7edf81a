"""Forwards and modes of modules, replaced for a while."""

import pytest
import torch
from torch import nn

from hullft_ops.ttft.models.forwards import (
    is_observed,
    is_replaced,
    replaced_forwards,
)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 6)

    def forward(self, x):
        return 2 * self.layer(x)


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def zero(layer, x):
    return torch.zeros(*x.shape[:-1], len(layer.weight))


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_modules_of_exactly_those_types_run_another_for_a_while(error):
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), Doubled(6, 3))
    x, hidden = torch.randn(5, 8), torch.randn(5, 6)
    doubled = model[2](hidden)
    before = [dict(vars(module)) for module in model.modules()]
    try:
        with replaced_forwards(model, {nn.Linear: zero, nn.ReLU: zero}):
            assert torch.equal(model[0](x), torch.zeros(5, 6))
            assert torch.equal(model[2](hidden), doubled)
            assert not is_replaced(model[0])

            if error is not None:
                raise error
    except KeyboardInterrupt:
        pass

    assert [dict(vars(module)) for module in model.modules()] == before


@pytest.mark.parametrize("whole", [True, False])
def test_a_compiled_model_is_not_compiled_again(whole):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    model = nn.Sequential(Block(), nn.Linear(6, 3))
    if whole:
        model = torch.compile(model, backend=backend)
    else:
        model[0].compile(backend=backend)
    expected = model(torch.ones(5, 8))
    for _ in range(2):
        with replaced_forwards(model, {nn.Linear: zero}):
            assert torch.equal(model(torch.ones(5, 8)), expected)

    assert len(graphs) == 1


def test_a_compiled_forward_runs_what_it_has_compiled():
    model = nn.Sequential(Block(), nn.Linear(6, 3))
    x = torch.ones(5, 8)
    expected = model[0](x)
    model[0].forward = torch.compile(model[0].forward, backend="eager", fullgraph=True)
    with replaced_forwards(model, {nn.Linear: zero}):
        assert torch.equal(model[0](x), expected)


def test_somebody_elses_forward_stays():
    layer = nn.Linear(8, 6)

    assert not is_observed(layer)

    layer.forward = theirs = lambda x: x + 1
    with replaced_forwards(layer, {nn.Linear: zero}):
        assert layer.forward is theirs
        assert is_replaced(layer)

    assert layer.forward is theirs
    assert is_observed(layer)
