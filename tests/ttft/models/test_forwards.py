"""What tells that a module's forward is observed."""

from torch import nn

from hullft_ops.ttft.models.forwards import is_observed


def test_a_hook_and_a_forward_of_somebody_elses_observe():
    hooked, replaced = nn.Linear(8, 6), nn.Linear(8, 6)

    assert not is_observed(hooked)

    hooked.register_forward_hook(lambda *_: None)
    replaced.forward = lambda x: x + 1

    assert is_observed(hooked)
    assert is_observed(replaced)
