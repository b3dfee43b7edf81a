"""Every operator on the device: the CPU's results, the same bits each time, and in CUDA graphs.

Capture forbids synchronisation and allocation outside torch's allocator. A replay must give the
bits of an eager call.
"""

from functools import partial

import pytest
import torch

from benchmarks.gpu.calls import Call, Outputs, calls
from benchmarks.gpu.graph import Graph
from hullft_ops import ReplayAdam
from hullft_ops._ops import ops

CALLS, OTHER_CALLS = calls(seed=0), calls(seed=100)
every_call = pytest.mark.parametrize("name", CALLS)


def test_every_operator_has_a_kernel(device: torch.device) -> None:
    key = "CUDA" if device.type == "cuda" else "CPU"
    missing = [
        name
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith(f"{ops.name}::")
        and not torch._C._dispatch_has_kernel_for_dispatch_key(name, key)
    ]
    assert not missing


def outputs(call: Call, device: torch.device) -> Outputs:
    return call.run(*call.on(device))


def same_bits(first: Outputs, second: Outputs) -> bool:
    return all(map(torch.equal, first, second))


def compared(outputs: Outputs) -> Outputs:
    """Rounding may choose between near atoms, but then a selection is about as good.

    Residuals are squared: near 0, the root of a rounding is large.
    """
    if hasattr(outputs, "variance"):
        return [outputs.variance]
    if hasattr(outputs, "residual"):
        return [outputs.residual.square()]
    return outputs


@every_call
def test_equals_the_cpu(name: str, device: torch.device) -> None:
    call = CALLS[name]
    expected = compared(outputs(call, torch.device("cpu")))
    for output, value in zip(compared(outputs(call, device)), expected, strict=True):
        error = (output.cpu().double() - value.double()).abs()
        assert (error / value.double().abs().clamp(min=1)).max() <= call.tolerance


@every_call
def test_repeats_bit_for_bit(name: str, device: torch.device) -> None:
    assert same_bits(outputs(CALLS[name], device), outputs(CALLS[name], device))


@every_call
def test_a_graph_replays_on_other_inputs(name: str, device: torch.device) -> None:
    call = CALLS[name]
    captured = call.on(device)
    graph = Graph(partial(call.run, *captured), device)
    for fresh in (OTHER_CALLS[name], call):
        for tensor, values in zip(captured, fresh.inputs, strict=True):
            tensor.copy_(values)
        assert same_bits(graph.replay(), outputs(fresh, device))


def test_captured_steps_of_adam(device: torch.device) -> None:
    """They keep counting, and read a rate and a gradient that change between replays."""
    start = torch.linspace(-1, 1, 3000).bfloat16()
    params = [start.clone().to(device).requires_grad_() for _ in range(2)]
    gradients = [torch.zeros_like(param) for param in params]
    for param, gradient in zip(params, gradients, strict=True):
        param.grad = gradient
    rate = torch.tensor(1e-2, device=device)
    captured = ReplayAdam([params[0]], lr=rate, capturable=True, rounding_seed=3)
    eager = ReplayAdam([params[1]], lr=1e-2, rounding_seed=3)

    def step() -> list[torch.Tensor]:
        captured.step(repeats=2)
        return [params[0].detach()]

    graph = Graph(step, device)
    captured.reset()
    params[0].data.copy_(start)
    for i in range(3):
        for gradient in gradients:  # in the captured memory
            gradient.copy_(torch.linspace(-i, 2, start.numel()))
        rate.fill_(1e-2 / (i + 1))
        eager.param_groups[0]["lr"] = rate.item()
        (replayed,) = graph.replay()
        eager.step(repeats=2)
        assert torch.equal(replayed, params[1].detach())
