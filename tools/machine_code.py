"""Reads the machine code in a cubin: its kernels, their branches and their loops."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path


def tools_folder() -> Path | None:
    """Where PyPI's packages put the tools."""
    for entry in sys.path:
        for tool in Path(entry).glob("nvidia/cu*/bin/cuobjdump"):
            return tool.parent
    return None


def disassemble(cubin: Path) -> str:
    folders = [os.environ["PATH"]]
    if (folder := tools_folder()) is not None:
        folders.append(str(folder))
    path = os.pathsep.join(folders)
    if (
        shutil.which("cuobjdump", path=path) is None
        or shutil.which("nvdisasm", path=path) is None
    ):
        raise SystemExit(
            "check_sass: cuobjdump and nvdisasm are neither on PATH nor from PyPI"
        )
    done = subprocess.run(
        ["cuobjdump", "-sass", str(cubin)],
        env=dict(os.environ, PATH=path), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(f"check_sass: cuobjdump {cubin}: {done.stderr}")
    return done.stdout


def kernels(text: str) -> dict[str, list[str]]:
    """The instructions of every kernel, 16 bytes each."""
    instructions: dict[str, list[str]] = {}
    name = ""
    for line in text.splitlines():
        if match := re.match(r"\s*Function : (\w+)", line):
            name = match[1]
            instructions[name] = []
        elif match := re.match(r"\s*/\*([0-9a-f]+)\*/\s+(.+?) *;", line):
            if int(match[1], 16) != 16 * len(instructions[name]):
                raise RuntimeError(
                    f"check_sass: {name}: no instruction before {match[1]}"
                )
            instructions[name].append(match[2])
    return instructions


def operation(line: str) -> str:
    """``FFMA`` of ``@!P0 FFMA.RP R1, R2, R3, R4``."""
    match = re.match(r"(?:@!?U?P\w+ )?([A-Z]\w*)", line)
    if match is None:
        raise RuntimeError(f"check_sass: cannot read {line!r}")
    return match[1]


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
    bodies = []
    for at, head in back:
        body, waiting = {head, at}, [at] if at != head else []
        while waiting:
            for earlier in before[waiting.pop()]:
                if earlier not in body:
                    body.add(earlier)
                    waiting.append(earlier)
        if head == 0 or 0 not in body:
            bodies.append(body)
    return bodies
