"""Whether bfloat16 is multiplied in hardware."""

from pathlib import Path

import pytest
import torch

from hullft_ops import _C
from hullft_ops.ttft.model.onednn import has_bfloat16

CPUINFO = Path("/proc/cpuinfo")


def flags() -> set[str]:
    """The processor's features, as Linux has them."""
    lines = CPUINFO.read_text().splitlines() if CPUINFO.exists() else []
    found = (
        line.partition(":")[2].split() for line in lines if line.startswith("flags")
    )
    return set(next(found, []))


@pytest.mark.skipif("fpu" not in flags(), reason="no x86 processor, or no Linux to ask")
def test_the_processor_is_asked() -> None:
    assert _C.lacks_bfloat16() == ("avx512_bf16" not in flags())


@pytest.mark.parametrize("lacks", [True, False])
def test_an_emulation_is_no_hardware(
    lacks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    monkeypatch.setattr(_C, "lacks_bfloat16", lambda: lacks)
    assert has_bfloat16(torch.device("cpu")) is not lacks
    assert has_bfloat16(torch.device("cuda"))
