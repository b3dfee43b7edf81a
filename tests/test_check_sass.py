"""The check of the machine code: on listings, without cuobjdump."""

import pytest

import check_sass

STEP = [
    "FADD R0, R1, -R2",
    "REDUX.MAX UR4, R0",
    "BRA.DIV UR4, 0xb0",  # to code for lanes that have parted
    "@P1 BRA 0x80",  # to the sums
    "SHFL.IDX PT, R16, R13, R79, 0x1f",
    "@!P0 EXIT",
    "MUFU.RCP64H R2, R3",
    "BRA 0x0",
    "DADD R6, R6, R8",
    "BAR.SYNC.DEFER_BLOCKING 0x0",
    "BRA 0x0",
    "SHFL.IDX PT, R16, R13, R79, 0x1f",
    "BRA 0xb0",
]
"""A loop of eight instructions, a longer one around it, and one that is never reached."""


def listing(code: list[str]) -> str:
    lines = [f"        /*{16 * i:04x}*/    {line} ;    /* 0x0 */" for i, line in enumerate(code)]
    return "\n".join(["\t\tFunction : fw_warp_kernelIfLi0E", *lines])


def test_the_step_is_the_smallest_loop() -> None:
    (code,) = check_sass.kernels(listing(STEP)).values()
    assert code == STEP
    assert check_sass.step_loop(code) == STEP[:8]
    assert check_sass.faults(code, 8) == []
    assert check_sass.faults(code, 7) == ["8 instructions a step, at most 7 are promised"]


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("BAR.SYNC.DEFER_BLOCKING 0x0", "'BAR.SYNC.DEFER_BLOCKING 0x0' in the step"),
        ("@P0 STL [R1+0x8], R4", "'@P0 STL [R1+0x8], R4' uses the stack"),
    ],
)
def test_barriers_and_the_stack_are_seen(line: str, fault: str) -> None:
    code = [line if at == 0 else given for at, given in enumerate(STEP)]
    assert check_sass.faults(code, 8) == [fault]


def test_a_listing_that_cannot_be_read_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="no loop with SHFL.IDX and MUFU.RCP"):
        check_sass.step_loop(["FADD R0, R1, R2", "EXIT"])
    with pytest.raises(RuntimeError, match="no instruction before 0020"):
        check_sass.kernels(listing(STEP).replace("/*0010*/", "/*0020*/"))
