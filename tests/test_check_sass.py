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
    lines = [
        f"        /*{16 * i:04x}*/    {line} ;    /* 0x0 */"
        for i, line in enumerate(code)
    ]
    return "\n".join(["\t\tFunction : fw_warp_kernelIfLi0E", *lines])


def test_the_step_is_the_smallest_loop() -> None:
    (code,) = check_sass.kernels(listing(STEP)).values()
    assert code == STEP
    assert check_sass.step_loop(code) == STEP[:8]
    assert check_sass.faults(code, 8) == []

    with pytest.raises(RuntimeError, match="no loop with SHFL.IDX and MUFU.RCP"):
        check_sass.step_loop(["FADD R0, R1, R2", "EXIT"])

    assert check_sass.faults(code, 7) == [
        "8 instructions a step, at most 7 are promised"
    ]


def test_barriers_and_the_stack_are_seen() -> None:
    barrier = ["BAR.SYNC 0x0", *STEP[1:]]
    assert check_sass.faults(barrier, 8) == ["'BAR.SYNC 0x0' in the step"]

    stack = ["@P0 STL [R1+0x8], R4", *STEP[1:]]
    assert check_sass.faults(stack, 8) == ["'@P0 STL [R1+0x8], R4' uses the stack"]


UNIT = [
    "@!P2 LDS.64 R14, [R7+0x2ff8]",
    "DFMA R16, R16, 2, R14",
    "REDUX.MAX UR4, R14",
    "REDUX.MIN UR4, R15",
    "@P1 BRA 0x0",
    "EXIT",
]


def test_a_unit_has_no_division() -> None:
    assert check_sass.unit_report(UNIT) == (5, [])

    division = ["MUFU.RCP64H R2, R3", *UNIT]
    assert check_sass.unit_report(division) == (6, ["MUFU in a unit"])

    long = ["NOP"] * check_sass.UNIT_LIMIT + UNIT
    assert "65 instructions a unit" in check_sass.unit_report(long)[1][0]


def test_the_wait_for_the_kernel_before() -> None:
    waits = ["ACQBULK", "EXIT"]
    assert check_sass.wait_faults(waits, 90) == []
    assert check_sass.wait_faults(waits, 80) == ["1 waits for the kernel before"]
    assert check_sass.wait_faults(["EXIT"], 80) == []


ELEMENT = [
    "FMUL R1, R0, R2",
    "MUFU.RSQ R2, R1",
    "MUFU.RCP R3, R2",
    "FFMA.RP R3, R3, R3, 1",
]
ROOT = [
    "FMUL.FTZ R3, R1, R2",
    "FMUL.FTZ R2, R2, 0.5",
    "FFMA R1, -R3, R3, R1",
    "FFMA R3, R1, R2, R3",
]


def adam_loop(elements: list[str], root: list[str] = ROOT) -> list[str]:
    """A loop over steps: the elements, and a way around that takes their roots one by one."""
    code = [*elements, "@P0 BRA AFTER"]
    for _ in range(8):
        code += [
            "MUFU.RSQ R2, R1",
            f"@!P1 BRA {16 * (len(code) + 3):#x}",
            "CALL.REL.NOINC 0x0",
        ]
        code += root

    code[len(elements)] = f"@P0 BRA {16 * len(code):#x}"
    return [*code, "FADD R0, R0, 1", "@P2 BRA 0x0", "EXIT"]


def test_the_elements_of_an_adam_step_follow_one_another() -> None:
    code = adam_loop(["BSSY B0, 0x0", *ELEMENT * 8])
    assert check_sass.step_lengths(code) == [1 + 4 * 8 + 3]
    assert check_sass.adam_faults(code) == []

    branches = adam_loop(["BSSY B0, 0x0", *ELEMENT, "@P1 BRA 0x50", *ELEMENT * 7])
    assert check_sass.adam_faults(branches) == [
        "branches between the elements of the step at 0x0"
    ]


MMA = "HMMA.16816.F32 "
LOADS = ["LDG.E.128.CONSTANT R8, desc[UR6][R8.64]"] * 8
LOOP = ["DEPBAR.LE SB0, 0x1", *[f"{MMA}R4, R8, R12, R4"] * 2, "@P1 BRA 0x0"]


def test_the_turn_of_a_gram_loop() -> None:
    tiles = [*LOADS, *LOOP]
    assert check_sass.gram_faults(tiles, MMA, 2, 8, 12) == []
    assert check_sass.gram_faults(tiles, MMA, 3, 7, 11) == [
        "8 loads of 16 bytes in a turn, 7 promised",
        f"2 {MMA}in a turn, 3 promised",
        "12 instructions a turn, at most 11 are promised",
    ]

    run = [f"{check_sass.COPY} [R5], desc[UR6][R8.64]", *LOOP]
    assert check_sass.gram_faults(run, MMA, 2, 0, 5) == []
    assert check_sass.gram_faults(LOOP, MMA, 2, 0, 5) == [
        f"no {check_sass.COPY} in the loop"
    ]
