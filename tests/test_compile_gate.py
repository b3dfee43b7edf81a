"""The gate that reads what ptxas says: on logs, without nvcc."""

import dataclasses
from pathlib import Path

import pytest

import compile_gate as gate

SYMBOL = "_ZN6hullft12_GLOBAL__N_19fw_kernelIfLb{}EEEvNS_9FwProblemENS_6FwPlanEPhNS_9FwOutputsE"
LOG = """ptxas info    : Compiling entry function '{symbol}' for 'sm_90'
ptxas info    : Function properties for {symbol}
    0 bytes stack frame, {spills} bytes spill stores, 0 bytes spill loads
ptxas info    : Used {registers} registers, used 1 barriers, {shared} bytes smem
"""


def faults(architecture: int, **changes: int) -> list[str]:
    values = {"spills": 0, "registers": 120, "shared": 512, "in_shared": 1}
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
    assert faults(90, registers=129) == [
        "fw_kernel<float, true> on sm_90: 0 resident threads, 512 promised"
    ]


@pytest.fixture
def costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list:
    """Of two kernels, and a README that holds their table as nvcc 1 made it."""
    log = LOG.format(symbol=SYMBOL.format(1), spills=0, registers=118, shared=512)
    kernels = [*gate.parse(log, 80), *gate.parse(log, 90)]
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{gate.BEGIN}{gate.END}after\n")
    monkeypatch.setattr(gate, "README", readme)
    gate.write(gate.table(kernels, "1"))
    return kernels


def with_changes(costs: list, **changes: int) -> list:
    return [dataclasses.replace(cost, **changes) for cost in costs]


def test_a_written_table_is_stale_once_the_costs_change(costs: list) -> None:
    assert not gate.stale(gate.table(costs, "1"))

    text = gate.README.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert gate.stale(gate.table(with_changes(costs, registers=100), "1"))
    assert gate.stale(gate.table(costs[:1], "1"))


def test_another_compiler_may_allocate_otherwise(costs: list) -> None:
    assert not gate.stale(gate.table(with_changes(costs, registers=100), "2"))
    assert gate.stale(gate.table(with_changes(costs, dynamic=0), "2"))
    assert gate.stale(gate.table(costs[:1], "2"))
