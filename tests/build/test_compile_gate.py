"""The gate that reads what ptxas says: on logs, without nvcc."""

import pytest

import compile_gate as gate

SYMBOL = "_ZN6hullft12_GLOBAL__N_19fw_kernelIfLb{}EEEvNS_9FwProblemENS_6FwPlanEPhNS_9FwOutputsE"
LOG = """ptxas info    : Compiling entry function '{symbol}' for 'sm_90'
ptxas info    : Function properties for {symbol}
    {stack} bytes stack frame, {spills} bytes spill stores, 0 bytes spill loads
ptxas info    : Used {registers} registers, used 1 barriers, {shared} bytes smem
"""


def faults(architecture: int, **changes: int) -> list[str]:
    values = {"stack": 0, "spills": 0, "registers": 120, "shared": 512, "in_shared": 1}
    values |= changes
    symbol = SYMBOL.format(values.pop("in_shared"))
    (cost,) = gate.parse(LOG.format(symbol=symbol, **values), architecture)
    return cost.faults()


@pytest.mark.parametrize("architecture", [80, 90, 100])
def test_dynamic_shared_memory_is_counted(architecture: int) -> None:
    """The host leaves 1024 bytes for what the kernel has besides: more does not fit."""
    limit = gate.block_limit(architecture)

    assert faults(architecture, shared=1024) == []

    message = f"may ask for 1025 + {limit - 1024} bytes of shared memory, a block may"

    assert message in " ".join(faults(architecture, shared=1025))
    assert faults(architecture, shared=1025, in_shared=0) == []


def test_spills_and_broken_promises() -> None:
    assert "spills 8 bytes" in " ".join(faults(90, spills=8))
    assert "keeps 16 bytes on the stack" in " ".join(faults(90, stack=16))
    assert faults(90, registers=129) == [
        "fw_kernel<float, true> on sm_90: 0 resident threads, 512 promised"
    ]
