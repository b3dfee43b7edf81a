"""Compiles the kernels' own sources for the CPU: one shared library for each kind of check.

``plain``: clang, optimised, products fused with the sums that use them, as nvcc does. ``asan``: g++
with AddressSanitizer and misaligned vector accesses. ``race``: every load and store reports to
cusim/race.cpp.
"""

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
CSRC = HERE.parent.parent / "csrc"
UNITS = sorted(path.stem for path in (CSRC / "cuda").glob("*.cu"))
CLANG = "clang++-19"
_TIMELESS = ["-Xclang", "-fno-pch-timestamp"]
# Processors but x86_64 always have fused multiply-adds.
_FUSES = ("-mfma",) if platform.machine() == "x86_64" else ()
_LIBRARIES = ["-lboost_context", "-ldl"]
_SANITIZERS = ("-fsanitize=address,alignment", "-fno-sanitize-recover=alignment")
_CHECKED = ("-O1", *_SANITIZERS)

UNOPTIMISED = ("-O0",)
"""For what compiles longer than it runs: a mutant's case ends at the first error."""


class BuildError(RuntimeError):
    """The toolchain is there and the sources do not compile."""


@dataclass(frozen=True)
class Kind:
    compiler: str
    kernel_flags: tuple[str, ...]
    driver_flags: tuple[str, ...] = ()
    link_flags: tuple[str, ...] = ()


KINDS = {
    "plain": Kind(CLANG, ("-O2", "-ffp-contract=fast", *_FUSES), ("-O2",)),
    "asan": Kind("g++", _CHECKED, _CHECKED, _SANITIZERS),
    "race": Kind(CLANG, ("-O1", "-fsanitize=thread"), ("-O2", "-DCUSIM_RACE")),
}


def cuda_include() -> Path | None:
    """The toolkit's headers, beside the nvcc on PATH or under CUDA_HOME."""
    roots = [
        os.environ.get("CUDA_HOME"),
        os.environ.get("CUDA_PATH"),
        "/usr/local/cuda",
    ]
    nvcc = shutil.which("nvcc")
    if nvcc:
        roots.insert(0, str(Path(nvcc).resolve().parent.parent))

    for root in roots:
        if root and (Path(root) / "include" / "driver_types.h").exists():
            return Path(root) / "include"

    return None


def missing_tools() -> list[str]:
    """The tools and headers that are not installed; see README.md."""
    missing = [tool for tool in (CLANG, "g++", "addr2line") if not shutil.which(tool)]
    if cuda_include() is None:
        missing.append("the CUDA toolkit's headers")

    if not any(
        Path(root, "boost/context/detail/fcontext.hpp").exists()
        for root in ("/usr/include", "/usr/local/include")
    ):
        missing.append("boost.context")

    return missing


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BuildError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


def _common(csrc: Path) -> list[str]:
    return [
        "-std=c++20",
        "-g1",
        "-fPIC",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-Wno-unknown-pragmas",
        "-isystem",
        str(cuda_include()),
        f"-I{HERE / 'cusim'}",
        f"-I{csrc}",
        "-DHULLFT_ARGUMENT_BYTES=4096",
    ]


def _digest(kind: str) -> str:
    digest = hashlib.sha256(repr(KINDS[kind]).encode())
    digest.update(str(HERE).encode())  # precompiled headers name their sources
    files = [Path(__file__)]
    files += CSRC.glob("core/*")
    files += CSRC.glob("cuda/*.[ch]*")
    files += HERE.rglob("*.h")
    files += HERE.rglob("*.cpp")

    for path in sorted(files):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())

    return digest.hexdigest()[:20]


def _cache() -> Path:
    temporary = Path(tempfile.gettempdir()) / f"hullft_cuda_sim_{os.getuid()}"
    return Path(os.environ.get("HULLFT_CUDA_SIM_CACHE", temporary))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time; the lock goes with the process that holds it."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _compile(kind: str, source: Path, output: Path, flags: list[str]) -> None:
    compiler = KINDS[kind].compiler
    _run([compiler, *flags, "-c", str(source), "-o", str(output)])


def _precompile(kind: str, into: Path, more_flags: Sequence[str] = ()) -> None:
    """The simulator's headers are half of a unit's compilation."""
    how = KINDS[kind]
    flags = [*_common(CSRC), *how.kernel_flags, *more_flags, "-x", "c++-header"]
    suffix = "gch"
    if how.compiler == CLANG:
        flags += _TIMELESS
        suffix = "pch"

    header = HERE / "cusim" / "precompiled.h"
    output = into / f"precompiled.h.{suffix}"
    _run([how.compiler, *flags, str(header), "-o", str(output)])


def _compile_unit(
    kind: str,
    csrc: Path,
    unit: str,
    header: Path,
    into: Path,
    more_flags: Sequence[str] = (),
) -> None:
    """``header``: the folder of the one precompiled with the same flags."""
    flags = [*_common(csrc), *KINDS[kind].kernel_flags, *more_flags]
    flags += ["-include", str(header / "precompiled.h"), "-x", "c++"]
    _compile(kind, csrc / "cuda" / f"{unit}.cu", into / f"{unit}.o", flags)


def _compile_driver(kind: str, source: str, into: Path) -> None:
    flags = [*_common(CSRC), *KINDS[kind].driver_flags]
    output = into / f"{Path(source).name}.o"
    _compile(kind, HERE / f"{source}.cpp", output, flags)


def _link(kind: str, into: Path, first: str = "") -> Path:
    """If several units hold an inline function, the linker takes the first unit's."""
    how = KINDS[kind]
    library = into / "libsim.so"
    ordered = sorted(into.glob("*.o"), key=lambda path: (path.stem != first, path.name))
    command = [how.compiler, "-shared", *how.link_flags]
    command += [str(path) for path in ordered]
    _run([*command, "-o", str(library), *_LIBRARIES])
    return library


def _compile_all(kind: str, into: Path) -> None:
    """Also links them."""
    drivers = ["driver", "cusim/race"] if kind == "race" else ["driver"]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = [pool.submit(_compile_driver, kind, source, into) for source in drivers]
        pool.submit(_precompile, kind, into).result()
        for unit in UNITS:
            jobs.append(pool.submit(_compile_unit, kind, CSRC, unit, into, into))

        for job in jobs:
            job.result()

    _link(kind, into)


def _build_once(name: str, kind: str, make: Callable[[str, Path], None]) -> Path:
    """The folder that ``make`` fills if the sources changed; processes share it."""
    final = _cache() / f"{name}-{_digest(kind)}"
    final.parent.mkdir(parents=True, exist_ok=True)
    with _locked(final.parent / f"{name}.lock"):
        if not final.exists():
            with tempfile.TemporaryDirectory(dir=final.parent) as scratch:
                into = Path(scratch) / "build"
                into.mkdir()
                make(kind, into)
                into.rename(final)

    return final


def build(kind: str) -> Path:
    """The library of one kind."""
    return _build_once(kind, kind, _compile_all) / "libsim.so"


def _precompile_for_mutants(kind: str, into: Path) -> None:
    _precompile(kind, into, UNOPTIMISED)


def build_patched(
    kind: str, unit: str, file: str, old: str, new: str, into: Path
) -> Path:
    """The library with one place of one source changed; only ``unit`` is compiled anew."""
    base = build(kind).parent
    header = _build_once(f"{kind}-header", kind, _precompile_for_mutants)
    csrc = into / "csrc"
    shutil.copytree(CSRC, csrc)
    target = csrc / file
    text = target.read_text()
    if text.count(old) != 1:
        raise BuildError(
            f"{file}: the mutant's text occurs {text.count(old)} times: {old!r}"
        )

    target.write_text(text.replace(old, new))
    objects = into / "objects"
    objects.mkdir()

    for path in base.glob("*.o"):
        if path.stem != unit:
            (objects / path.name).symlink_to(path)

    _compile_unit(kind, csrc, unit, header, objects, UNOPTIMISED)
    return _link(kind, objects, first=unit)


def build_host(into: Path) -> Path:
    """What csrc/cuda_host has without torch, on the runtime of host/runtime.cpp."""
    library = into / "libhost.so"
    command = ["g++", *_common(CSRC), "-shared", "-Wl,-Bsymbolic"]
    command += [str(CSRC / "cuda_host/device.cpp"), str(HERE / "host/runtime.cpp")]
    _run([*command, "-o", str(library)])
    return library


def build_selftest(kind: str, into: Path) -> Path:
    """The simulator's own test as a program."""
    how = KINDS[kind]
    program = into / f"selftest_{kind}"
    flags = [*_common(CSRC), *how.kernel_flags, *UNOPTIMISED]
    objects = [into / f"selftest_{kind}.o"]
    if kind == "race":
        flags.append("-DCUSIM_RACE")
        _compile_driver(kind, "cusim/race", into)
        objects.append(into / "race.o")

    _compile(kind, HERE / "cusim/selftest.cpp", objects[0], flags)
    command = [how.compiler, *how.link_flags, *map(str, objects)]
    _run([*command, "-o", str(program), *_LIBRARIES])
    return program


def build_estimates(csrc: Path, into: Path) -> Path:
    """The program of the check on a GPU that tries the hardware's estimates."""
    program = into / "estimates"
    source = CSRC.parent / "benchmarks/gpu/estimates.cu"
    flags = [*_common(csrc), *KINDS["plain"].kernel_flags, "-x", "c++", str(source)]
    _run([CLANG, *flags, "-o", str(program), *_LIBRARIES])
    return program
