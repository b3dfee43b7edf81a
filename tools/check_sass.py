"""Reads the machine code of four loops: the steps of the Frank-Wolfe solver that has one warp a
query and its counts' units, the steps of the Adam sweep, and the loop over d of the Gram kernels.

Fails where a loop has more instructions than LIMITS, ADAM_LIMIT or GRAM_KERNELS allow, or a kernel
loads or stores a thread's stack. The Frank-Wolfe loop has no barrier of the block, and a unit no
division. From sm_90 on, the solver waits once for the kernel before it. The Adam loop
takes the roots and quotients of a thread's elements one after the other, without a branch between
them. A turn of a Gram loop has all its products, and what a run of tiles reads comes into shared
memory past the registers::

    python tools/check_sass.py CUBINS

CUBINS is a folder of what ``nvcc -cubin`` made, for example with ``compile_gate.py --keep``. Needs
cuobjdump and nvdisasm of a CUDA toolkit, on PATH or from PyPI (nvidia-cuda-cuobjdump,
nvidia-cuda-nvdisasm); no GPU.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from machine_code import disassemble, kernels, loops, operation, successors

KERNEL = "fw_warp_kernel"

# Instructions of a step, by type and variant: each kernel's template arguments as in its symbol.
LIMITS = {
    "float, vanilla": ("IfLi0E", 170),
    "float, away": ("IfLi1E", 520),
    "float, pairwise": ("IfLi2E", 460),
    "double, vanilla": ("IdLi0E", 300),
    "double, away": ("IdLi1E", 900),
    "double, pairwise": ("IdLi2E", 820),
}

# Instructions of a unit that integerization gives to an atom.
UNIT_LIMIT = 60
SLOW = re.compile(r"\b(MUFU|CALL|BAR)\b")
WAIT, WAITS_FROM = "ACQBULK", 90  # for the kernel before

# The sweeps with float32 arithmetic, and the instructions of a step on one element.
ADAM = "adam_kernel"
ADAM_KERNELS = {
    "Adam, float": "IfLb0E",
    "Adam, bfloat16": "INS_8BFloat16ELb0E",
    "Adam, bfloat16, stochastic": "INS_8BFloat16ELb1E",
    "Adam, float16": "INS_7Float16ELb0E",
}
ADAM_ELEMENTS, ADAM_LIMIT = 8, 31
# What ptxas makes of a square root: csrc/core/from_estimates.h does the same.
ROOT = ("FMUL", "FMUL", "FFMA", "FFMA")

# The loops over d of the Gram kernels: template arguments, the instruction that multiplies, how
# often a turn has it, the loads of 16 bytes from global memory, and the instructions of the loop.
# Runs of tiles come into shared memory past the registers, so that no such load is in their loop.
TF32, BF16, F16 = "HMMA.1688.F32.TF32 ", "HMMA.16816.F32.BF16 ", "HMMA.16816.F32 "
GRAM_KERNELS = {
    "Gram, float, tiles": ("gram_spread_kernelIfE", TF32, 24, 8, 490),
    "Gram, bfloat16, tiles": ("gram_spread_kernelINS_8BFloat16E", BF16, 8, 8, 400),
    "Gram, float16, tiles": ("gram_spread_kernelINS_7Float16E", F16, 8, 8, 400),
    "Gram, float, runs": ("gram_blocks_kernelIfE", TF32, 72, 0, 720),
    "Gram, bfloat16, runs": ("gram_blocks_kernelINS_8BFloat16E", BF16, 24, 0, 440),
    "Gram, float16, runs": ("gram_blocks_kernelINS_7Float16E", F16, 24, 0, 440),
    "Gram, double": ("gram_float64_kernel", "DFMA ", 256, 8, 575),
}
COPY = "LDGSTS.E.BYPASS.128"

BARRIER, STACK = re.compile(r"\bBAR\b"), re.compile(r"\b(LDL|STL)\b")


def step_loop(code: list[str]) -> list[str]:
    """The smallest loop that asks the lane of the largest correlation and takes a quotient."""

    def has(body: set[int], operation: str) -> bool:
        return any(operation in code[i] for i in body)

    steps = [
        body for body in loops(code) if has(body, "SHFL.IDX") and has(body, "MUFU.RCP")
    ]
    if not steps:
        raise RuntimeError("check_sass: no loop with SHFL.IDX and MUFU.RCP")
    return [code[i] for i in sorted(min(steps, key=len))]


def faults(code: list[str], limit: int) -> list[str]:
    """What is wrong with a kernel, given the most instructions that its step may have."""
    step = step_loop(code)
    wrong = [f"{line!r} in the step" for line in step if BARRIER.search(line)]
    wrong += [f"{line!r} uses the stack" for line in code if STACK.search(line)]
    if len(step) > limit:
        wrong.append(f"{len(step)} instructions a step, at most {limit} are promised")
    return wrong


def unit_report(code: list[str]) -> tuple[int, list[str]]:
    """Instructions of a unit, and what is wrong with the loop that gives one or more at a turn: the
    smallest one that finds a least gain and asks no other lane for a number."""
    units = []
    for body in loops(code):
        text = "\n".join(code[at] for at in sorted(body))
        if "REDUX.MIN" in text and "DFMA" in text and "SHFL" not in text:
            units.append(text)
    if not units:
        raise RuntimeError("check_sass: no loop with REDUX.MIN and DFMA")

    unit = min(units, key=len)
    taken = len(unit.splitlines()) // unit.count("REDUX.MIN")
    wrong = [f"{name} in a unit" for name in SLOW.findall(unit)]
    if taken > UNIT_LIMIT:
        wrong.append(f"{taken} instructions a unit, at most {UNIT_LIMIT} are promised")
    return taken, wrong


def wait_faults(code: list[str], architecture: int) -> list[str]:
    """Whether a kernel waits once for the one before it, where the card has that instruction."""
    waits = sum(WAIT in line for line in code)
    right = waits == int(architecture >= WAITS_FROM)
    return [] if right else [f"{waits} waits for the kernel before"]


def straight_runs(code: list[str], body: set[int]) -> list[list[int]]:
    """What is left of a loop's body between branches and the places that they go to."""
    targets = {
        after for at in body for after in successors(code, at) if after != at + 1
    }
    runs: list[list[int]] = []
    for at in sorted(body):
        parted = not runs or runs[-1][-1] != at - 1 or at in targets
        if parted or operation(code[at - 1]) in (
            "BRA",
            "CALL",
            "RET",
            "EXIT",
            "WARPSYNC",
        ):
            runs.append([])
        runs[-1].append(at)
    return runs


def shortest_way(code: list[str], body: set[int], start: int, end: int) -> int:
    """Instructions after ``start`` and before ``end``."""
    waiting, seen, passed = [start], {start}, 0
    while waiting:
        following = {
            after for at in waiting for after in successors(code, at) if after in body
        }
        if end in following:
            return passed
        waiting, passed = sorted(following - seen), passed + 1
        seen |= following
    raise RuntimeError(f"check_sass: no way from {16 * start:#x} to {16 * end:#x}")


def adam_steps(code: list[str]) -> list[set[int]]:
    """The loops over steps: the innermost ones with square roots of float32."""
    bodies = [body for body in loops(code) if any("MUFU.RSQ " in code[i] for i in body)]
    return [body for body in bodies if not any(other < body for other in bodies)]


def quick_run(code: list[str], body: set[int]) -> list[int] | None:
    """The straight run of a step with the roots and quotients of all elements. One BSSY in it is
    that of the way around, for elements that are not ordinary."""
    for run in straight_runs(code, body):
        counts = [
            sum(name in code[at] for at in run)
            for name in ("MUFU.RSQ ", "MUFU.RCP ", "BSSY")
        ]
        if counts[:2] == [ADAM_ELEMENTS] * 2 and counts[2] <= 1:
            return run
    return None


def adam_faults(code: list[str]) -> list[str]:
    """What is wrong with a kernel of the Adam sweep."""
    wrong = [f"{line!r} uses the stack" for line in code if STACK.search(line)]
    steps = adam_steps(code)
    if not steps:
        raise RuntimeError("check_sass: no loop with MUFU.RSQ")
    for body, taken in zip(steps, step_lengths(code), strict=True):
        if taken == 0:
            wrong.append(
                f"branches between the elements of the step at {16 * min(body):#x}"
            )
        elif taken > ADAM_LIMIT * ADAM_ELEMENTS:
            wrong.append(
                f"{taken} instructions a step, at most {ADAM_LIMIT} an element promised"
            )
    # The step that takes roots one by one, as ptxas makes them.
    alone = [
        run
        for run in straight_runs(code, set(range(len(code))))
        if tuple(operation(code[at]) for at in run[:4]) == ROOT
    ]
    if len(alone) < ADAM_ELEMENTS:
        wrong.append(f"ptxas makes other square roots than {', '.join(ROOT)}")
    return wrong


def step_lengths(code: list[str]) -> list[int]:
    """Instructions of each kind of step on all elements of a thread, 0 where they are parted."""
    runs = [(body, quick_run(code, body)) for body in adam_steps(code)]
    return [
        0 if run is None else len(run) + shortest_way(code, body, run[-1], run[0])
        for body, run in runs
    ]


def gram_loop(code: list[str], product: str) -> list[str]:
    """The loop over d."""
    bodies = [body for body in loops(code) if any(product in code[at] for at in body)]
    if not bodies:
        raise RuntimeError(f"check_sass: no loop with {product}")
    return [code[at] for at in sorted(max(bodies, key=len))]


def gram_faults(
    code: list[str], product: str, products: int, loads: int, limit: int
) -> list[str]:
    """What is wrong with a Gram kernel."""
    wrong = [f"{line!r} uses the stack" for line in code if STACK.search(line)]
    turn = gram_loop(code, product)
    loaded = sum("LDG.E.128" in line for line in turn)
    if loaded != loads:
        wrong.append(f"{loaded} loads of 16 bytes in a turn, {loads} promised")
    if loads == 0 and not any(COPY in line for line in turn):
        wrong.append(f"no {COPY} in the loop")
    if (multiplied := sum(product in line for line in turn)) != products:
        wrong.append(f"{multiplied} {product}in a turn, {products} promised")
    if len(turn) > limit:
        wrong.append(f"{len(turn)} instructions a turn, at most {limit} are promised")
    return wrong


def fw_reports(code: dict[str, list[str]]) -> Iterator[tuple[str, int, list[str]]]:
    """Name, instructions of a step and faults of each kernel."""
    for name, (symbol, limit) in LIMITS.items():
        (kernel,) = (lines for key, lines in code.items() if f"{KERNEL}{symbol}" in key)
        yield name, len(step_loop(kernel)), faults(kernel, limit)
        yield f"{name}, a unit", *unit_report(kernel)


def adam_reports(
    code: dict[str, list[str]],
) -> Iterator[tuple[str, list[int], list[str]]]:
    for name, symbol in ADAM_KERNELS.items():
        (kernel,) = (lines for key, lines in code.items() if f"{ADAM}{symbol}" in key)
        yield name, step_lengths(kernel), adam_faults(kernel)


def gram_reports(code: dict[str, list[str]]) -> Iterator[tuple[str, int, list[str]]]:
    """Of the Gram kernels of one unit."""
    for name, (symbol, *promised) in GRAM_KERNELS.items():
        for key, kernel in code.items():
            if symbol in key:
                turn = gram_loop(kernel, promised[0])
                yield name, len(turn), gram_faults(kernel, *promised)


REPORTS = {
    "fw_warp": fw_reports,
    "adam_replay": adam_reports,
    "gram": gram_reports,
    "gram_blocks": gram_reports,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cubins", type=Path, help="a folder")
    arguments = parser.parse_args()
    failed = False
    for unit, reports in REPORTS.items():
        paths = sorted(arguments.cubins.glob(f"{unit}.*.cubin"))
        if not paths:
            raise SystemExit(f"check_sass: no {unit}.*.cubin in {arguments.cubins}")
        for path in paths:
            code = kernels(disassemble(path))
            found = list(reports(code))
            if unit == "fw_warp":
                architecture = int(path.stem.removeprefix("fw_warp."))
                for name, lines in code.items():
                    found.append((name, len(lines), wait_faults(lines, architecture)))
            for name, lengths, wrong in found:
                print(f"{path.stem}, {name}: {lengths} instructions")
                for fault in wrong:
                    failed = True
                    print(f"check_sass: {path.stem}, {name}: {fault}", file=sys.stderr)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
