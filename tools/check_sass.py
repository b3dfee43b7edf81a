"""Reads the machine code of the Frank-Wolfe solver that has one warp a query.

Fails where the loop of its steps has a barrier of the block, more instructions than LIMITS allows,
or a load or store of a thread's stack::

    python tools/check_sass.py CUBINS

CUBINS is a folder of what ``nvcc -cubin`` made, for example with ``compile_gate.py --keep``. Needs
cuobjdump and nvdisasm of a CUDA toolkit, on PATH or from PyPI (nvidia-cuda-cuobjdump,
nvidia-cuda-nvdisasm); no GPU.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

KERNEL = "fw_warp_kernel"

# Instructions of a step, by type and variant: each kernel's template arguments as in its symbol.
LIMITS = {
    "float, vanilla": ("IfLi0E", 170),
    "float, away": ("IfLi1E", 640),
    "float, pairwise": ("IfLi2E", 600),
    "double, vanilla": ("IdLi0E", 300),
    "double, away": ("IdLi1E", 1050),
    "double, pairwise": ("IdLi2E", 960),
}

BARRIER, STACK = re.compile(r"\bBAR\b"), re.compile(r"\b(LDL|STL)\b")


def tools_folder() -> Path | None:
    """Where PyPI's packages put the tools."""
    for entry in sys.path:
        for found in Path(entry).glob("nvidia/cu*/bin/cuobjdump"):
            return found.parent
    return None


def disassemble(cubin: Path) -> str:
    folders = [os.environ["PATH"]]
    if (folder := tools_folder()) is not None:
        folders.append(str(folder))
    path = os.pathsep.join(folders)
    if shutil.which("cuobjdump", path=path) is None or shutil.which("nvdisasm", path=path) is None:
        raise SystemExit("check_sass: cuobjdump and nvdisasm are neither on PATH nor from PyPI")
    done = subprocess.run(
        ["cuobjdump", "-sass", str(cubin)],
        env=dict(os.environ, PATH=path), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(f"check_sass: cuobjdump {cubin}: {done.stderr}")
    return done.stdout


def kernels(text: str) -> dict[str, list[str]]:
    """The instructions of every kernel, 16 bytes each."""
    found: dict[str, list[str]] = {}
    name = ""
    for line in text.splitlines():
        if match := re.match(r"\s*Function : (\w+)", line):
            name = match[1]
            found[name] = []
        elif match := re.match(r"\s*/\*([0-9a-f]+)\*/\s+(.+?) *;", line):
            if int(match[1], 16) != 16 * len(found[name]):
                raise RuntimeError(f"check_sass: {name}: no instruction before {match[1]}")
            found[name].append(match[2])
    return found


def successors(code: list[str], at: int) -> list[int]:
    """Instructions that may come next in a warp whose lanes stay together."""
    match = re.match(r"(@!?U?P\w+ )?([A-Z]\w*)\S*(.*)", code[at])
    if match is None:
        raise RuntimeError(f"check_sass: cannot read {code[at]!r}")
    condition, operation, operands = match.groups()
    following = [at + 1] if at + 1 < len(code) else []
    if operation == "BRA" and "BRA.DIV" not in code[at]:
        target = re.search(r"0x([0-9a-f]+)$", operands)
        if target is None:
            raise RuntimeError(f"check_sass: no target in {code[at]!r}")
        conditional = condition or re.search(r"P\d", operands)
        return [int(target[1], 16) // 16, *(following if conditional else [])]
    return following if condition or operation not in ("EXIT", "RET", "BRX") else []


def loops(code: list[str]) -> list[set[int]]:
    """The natural loop of every branch backwards."""
    before: dict[int, list[int]] = {0: []}  # of what can be reached
    back, reached = [], [0]
    while reached:
        at = reached.pop()
        for after in successors(code, at):
            if after not in before:
                before[after] = []
                reached.append(after)
            before[after].append(at)
            if after <= at:
                back.append((at, after))
    found = []
    for at, head in back:
        body, waiting = {head, at}, [at] if at != head else []
        while waiting:
            for earlier in before[waiting.pop()]:
                if earlier not in body:
                    body.add(earlier)
                    waiting.append(earlier)
        if head == 0 or 0 not in body:
            found.append(body)
    return found


def step_loop(code: list[str]) -> list[str]:
    """The smallest loop that asks the lane of the largest correlation and takes a quotient."""

    def has(body: set[int], operation: str) -> bool:
        return any(operation in code[i] for i in body)

    steps = [body for body in loops(code) if has(body, "SHFL.IDX") and has(body, "MUFU.RCP")]
    if not steps:
        raise RuntimeError("check_sass: no loop with SHFL.IDX and MUFU.RCP")
    return [code[i] for i in sorted(min(steps, key=len))]


def faults(code: list[str], limit: int) -> list[str]:
    """What is wrong with a kernel, given the most instructions that its step may have."""
    step = step_loop(code)
    found = [f"{line!r} in the step" for line in step if BARRIER.search(line)]
    found += [f"{line!r} uses the stack" for line in code if STACK.search(line)]
    if len(step) > limit:
        found.append(f"{len(step)} instructions a step, at most {limit} are promised")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cubins", type=Path, help="a folder")
    arguments = parser.parse_args()
    paths = sorted(arguments.cubins.glob("fw_warp.*.cubin"))
    if not paths:
        raise SystemExit(f"check_sass: no fw_warp.*.cubin in {arguments.cubins}")
    failed = False
    for path in paths:
        code = kernels(disassemble(path))
        for name, (symbol, limit) in LIMITS.items():
            (found,) = (lines for key, lines in code.items() if f"{KERNEL}{symbol}" in key)
            print(f"{path.stem}, {name}: {len(step_loop(found))} instructions a step")
            for fault in faults(found, limit):
                failed = True
                print(f"check_sass: {path.stem}, {name}: {fault}", file=sys.stderr)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
