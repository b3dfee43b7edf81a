"""Compiles the CUDA kernels for each architecture and reads what they cost.

Fails on a warning, a register spill, an array on a thread's stack, more shared memory than a block
may have, or fewer resident threads than KERNELS promises, and prints a table of all kernels. Shared
memory is the static part that ptxas reports and the most that the host may ask for besides. Needs
nvcc, no GPU.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

CUDA = Path(__file__).resolve().parent.parent / "csrc" / "cuda"

REGISTERS_PER_SM = 65_536
STATIC_SHARED_LIMIT = 48 * 1024
MAX_THREADS_PER_SM = 2048
MAX_BLOCKS_PER_SM = 32
SHARED_PER_SM = {80: 164 * 1024, 90: 228 * 1024, 100: 228 * 1024}
RESERVED_SHARED = 1024  # of every block; it may ask for the rest

# Kernels whose dynamic shared memory plan.cu computes, by the start of their name, and their
# sources. It leaves kFixedSharedBytes of what a block may ask for: the largest is therefore that
# much below the limit, and the static part must fit in between.
DYNAMIC_SHARED = {
    "fw_corrective_kernel<float, true": "fw_corrective.cu",
    "fw_corrective_kernel<double, true": "fw_corrective.cu",
    "fw_kernel<float, true": "frank_wolfe.cu",
    "fw_kernel<double, true": "frank_wolfe.cu",
    "sift_kernel<float, true": "sift.cu",
    "sift_kernel<double, true": "sift.cu",
}
LEFT_FREE = re.compile(r"\bkFixedSharedBytes = (\d+);")

# Most threads of a block, and resident threads of an SM that the kernel promises, by the start of
# its name.
KERNELS = {
    "accumulate_kernel": (256, 1024),
    "adam_kernel": (256, 512),
    "adjoint_kernel": (128, 384),
    "advance_kernel": (256, 1024),
    "columns_kernel": (256, 512),
    "correlate_kernel": (256, 512),
    "distance_kernel": (256, 512),
    "distance_sum_kernel": (256, 1024),
    "fw_corrective_kernel<float": (512, 512),
    "fw_corrective_kernel<double": (256, 256),
    "fw_kernel<float": (512, 512),
    "fw_kernel<double": (256, 256),
    "fw_tableau_kernel": (128, 256),
    "fw_warp_kernel<float": (256, 512),
    "fw_warp_kernel<double": (256, 256),
    "gram_blocks_kernel": (256, 512),
    "gram_float64_kernel": (256, 512),
    "gram_spread_kernel": (256, 512),
    "gram_sum_kernel": (256, 1024),
    "integerize_kernel": (256, 512),
    "knn_gap_kernel": (256, 1024),
    "knn_kernel": (256, 768),
    "lmo_kernel": (256, 1024),
    "residual_kernel": (256, 1024),
    "sift_kernel<float": (512, 512),
    "sift_kernel<double": (256, 256),
    "support_kernel": (128, 512),
}


@dataclass(frozen=True)
class Cost:
    """What ptxas says of one kernel on one architecture; sizes in bytes."""

    kernel: str
    architecture: int
    registers: int
    stack: int
    spills: int
    shared: int
    """Static."""
    dynamic: int = 0
    """The largest that the host may ask for."""

    @property
    def resident_threads(self) -> int:
        """Threads of this kernel that fit an SM."""
        threads, _ = self.promise
        per_warp = -(-self.registers * 32 // 256) * 256
        by_registers = REGISTERS_PER_SM // per_warp * 32 // threads
        shared = self.shared + self.dynamic + RESERVED_SHARED
        by_shared = SHARED_PER_SM[self.architecture] // shared
        blocks = min(
            by_registers, by_shared, MAX_THREADS_PER_SM // threads, MAX_BLOCKS_PER_SM
        )
        return blocks * threads

    @property
    def promise(self) -> tuple[int, int]:
        for start, promise in KERNELS.items():
            if re.match(rf"{start}\b", self.kernel):
                return promise
        raise RuntimeError(f"compile_gate: KERNELS has no promise for {self.kernel}")

    def faults(self) -> list[str]:
        _, promised = self.promise
        where = f"{self.kernel} on sm_{self.architecture}"
        faults = []
        if self.spills:
            faults.append(f"{where} spills {self.spills} bytes")
        if self.stack:
            faults.append(f"{where} keeps {self.stack} bytes on the stack")
        if self.shared > STATIC_SHARED_LIMIT:
            faults.append(f"{where} wants {self.shared} bytes of static shared memory")
        limit = block_limit(self.architecture)
        if self.shared + self.dynamic > limit:
            faults.append(
                f"{where} may ask for {self.shared} + {self.dynamic} bytes of shared memory, "
                f"a block may have {limit}"
            )
        if self.resident_threads < promised:
            faults.append(
                f"{where}: {self.resident_threads} resident threads, {promised} promised"
            )
        return faults


def block_limit(architecture: int) -> int:
    """Shared memory that one block may ask for."""
    return SHARED_PER_SM[architecture] - RESERVED_SHARED


def largest_dynamic(kernel: str, architecture: int) -> int:
    """Bytes of dynamic shared memory that the host may ask for."""
    if not kernel.startswith(tuple(DYNAMIC_SHARED)):
        return 0

    number = LEFT_FREE.search((CUDA / "plan.cu").read_text())
    if number is None:
        raise RuntimeError("compile_gate: plan.cu has no number kFixedSharedBytes")
    return block_limit(architecture) - int(number[1])


def check_sources() -> None:
    """No kernel uses dynamic shared memory that is not counted."""
    counted = DYNAMIC_SHARED.values()
    for path in sorted(CUDA.glob("*.cu")):
        if "HULLFT_DYNAMIC_SHARED" in path.read_text() and path.name not in counted:
            raise RuntimeError(
                f"compile_gate: DYNAMIC_SHARED does not count {path.name}"
            )


def readable(symbols: list[str]) -> dict[str, str]:
    """``fw_kernel<float, true>`` for each mangled name."""
    done = subprocess.run(
        ["c++filt"],
        input="\n".join(symbols),
        capture_output=True,
        text=True,
        check=True,
    )
    names = {}
    for symbol, full in zip(symbols, done.stdout.splitlines(), strict=True):
        match = re.search(r"(\w+_kernel)(<[^(]*>)?\(", full)
        if match is None:
            raise RuntimeError(
                f"compile_gate: cannot read the kernel's name in {full!r}"
            )
        arguments = (match[2] or "").replace("hullft::", "")
        names[symbol] = match[1] + re.sub(r"\(bool\)(\d)", r"\1", arguments)
    return names


def parse(log: str, architecture: int) -> list[Cost]:
    """The costs in the output of ``nvcc -Xptxas -v``."""
    counts: dict[str, dict[str, int]] = {}
    function, entry = "", ""
    for line in log.splitlines():
        if match := re.search(r"Compiling entry function '(\w+)'", line):
            entry = match[1]
            counts[entry] = {"registers": 0, "stack": 0, "spills": 0, "shared": 0}
        elif match := re.search(r"Function properties for (\w+)", line):
            function = match[1]
        elif match := re.search(
            r"(\d+) bytes stack frame, (\d+) .*stores, (\d+) ", line
        ):
            # A function that the kernel calls counts as the kernel's own.
            cost = counts[function if function in counts else entry]
            cost["stack"] += int(match[1])
            cost["spills"] += int(match[2]) + int(match[3])
        elif match := re.search(r"Used (\d+) registers", line):
            shared = re.search(r"(\d+) bytes smem", line)
            counts[entry]["registers"] = int(match[1])
            counts[entry]["shared"] = int(shared[1]) if shared else 0
    names = readable(sorted(counts))
    return [
        Cost(
            names[symbol],
            architecture,
            dynamic=largest_dynamic(names[symbol], architecture),
            **counts[symbol],
        )
        for symbol in sorted(counts)
    ]


def run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def compile_unit(
    nvcc: str, source: Path, architecture: int, scratch: Path
) -> list[Cost]:
    output = scratch / f"{source.stem}.{architecture}.cubin"
    log = run(
        [
            nvcc,
            "-std=c++20",
            "-O3",
            "-Werror=all-warnings",
            "-Xptxas",
            "-v",
            "-cubin",
            f"-arch=sm_{architecture}",
            str(source),
            "-o",
            str(output),
        ]
    )
    return parse(log, architecture)


def compile_all(nvcc: str, scratch: Path) -> list[Cost]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = [
            pool.submit(compile_unit, nvcc, source, architecture, scratch)
            for source in sorted(CUDA.glob("*.cu"))
            for architecture in SHARED_PER_SM
        ]
        return [cost for job in jobs for cost in job.result()]


def release(nvcc: str) -> str:
    done = subprocess.run(
        [nvcc, "--version"], capture_output=True, text=True, check=True
    )
    match = re.search(r"release [\d.]+, V([\d.]+)", done.stdout)
    if match is None:
        raise RuntimeError(
            f"compile_gate: no release in what nvcc --version says: {done.stdout!r}"
        )
    return match[1]


def table(costs: list[Cost], compiler: str) -> str:
    lines = [
        f"By nvcc {compiler}.",
        "",
        "| kernel | sm | registers | stack | spills | static | dynamic | resident | promised |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for cost in sorted(costs, key=lambda cost: (cost.kernel, cost.architecture)):
        lines.append(
            f"| `{cost.kernel}` | {cost.architecture} | {cost.registers} | {cost.stack} "
            f"| {cost.spills} | {cost.shared} | {cost.dynamic} | {cost.resident_threads} "
            f"| {cost.promise[1]} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        raise SystemExit("compile_gate: nvcc is not on PATH")
    check_sources()
    with tempfile.TemporaryDirectory() as scratch:
        costs = compile_all(nvcc, Path(scratch))
    print(table(costs, release(nvcc)))
    faults = [fault for cost in costs for fault in cost.faults()]
    for fault in faults:
        print(f"compile_gate: {fault}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
