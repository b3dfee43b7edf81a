"""Runs operator tests with the extension built with sanitizers, and proves that each one sees.

python tools/sanitized_tests.py address   # AddressSanitizer and UndefinedBehaviorSanitizer
python tools/sanitized_tests.py thread    # ThreadSanitizer

Wants g++ with its sanitizer runtimes, and a Python with torch, pybind11, cmake, ninja and what the
tests need. Builds a copy of the sources in build/sanitized/, where bugs are planted. Each is chosen
alone: it is an error if the sanitizer does not report it. The tests run with none of them chosen.
Python and torch are not instrumented, their leaks and threads are none of our concern.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SANITIZERS = ROOT / "tools" / "sanitizers"
SAME_BITS = "tests/properties/test_selection_same_bits.py"
SHARED_LOOPS = f"{SAME_BITS}::test_the_number_of_threads"
OPERATOR_TESTS = [
    "tests/properties/test_replay.py",
    SAME_BITS,
    f"--deselect={SHARED_LOOPS}",  # for the thread sanitizer
    # Other values in the same places.
    f"--deselect={SAME_BITS}::test_scaling_by_a_power_of_two",
    "tests/ops/test_fw_lmo.py",
    "tests/ops/test_grad_accumulate.py",
    "tests/ops/test_knn_select.py",
    "tests/ops/test_screening.py",
    "tests/ops/test_selection_errors.py",
    "tests/ops/test_selection_batches.py",
    # It starts another Python, which loads the extension that is installed, without sanitizers.
    "--deselect=tests/ops/test_selection_batches.py::test_a_small_batch_starts_no_thread",
]
# Tests whose loops are shared among threads: smaller selections stay on one thread.
# The instruction sets have the same loops, so one of them, the widest, is enough.
THREAD_TESTS = ["tests/properties/test_replay.py", SHARED_LOOPS, "-k=WIDEST"]
CHOICE = "HULLFT_PLANTED"
# A batch that is large enough to be shared among threads. Importing torch takes long: one process
# does it, forks for each bug, which ends its process, and is where the tests run.
RUN = f"""
import os
from pathlib import Path
import pytest

def trigger():
    pool, query = torch.randn(33, 24_000), torch.randn(24_000)
    pool[:30] = 0
    pool[32] = query
    hullft_ops.fw_lmo(pool, query.expand(64, -1), torch.zeros(64, 24_000))

reports = Path(sys.argv[1])
for bug in sys.argv[2].split():
    child = os.fork()
    if child == 0:
        os.dup2(os.open(reports / bug, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), 2)
        os.environ["{CHOICE}"] = bug
        trigger()
        os._exit(0)
    assert os.waitpid(child, 0)[1] != 0, f"planted {{bug}} and nothing ended"
trigger()
widest = hullft_ops._C.simd_levels()[0]
sys.exit(pytest.main([word.replace("WIDEST", widest) for word in sys.argv[3:]]))
"""


@dataclass(frozen=True)
class Bug:
    """A choice among what was planted, and the report that it must give."""

    name: str
    report: str


@dataclass(frozen=True)
class Edit:
    """What to put in the place of what; ``planted("name")`` says whether that bug is chosen."""

    right: str
    wrong: str


@dataclass(frozen=True)
class Sanitizer:
    flags: str
    runtimes: tuple[str, ...]
    """Libraries of the compiler to load before Python."""
    environment: dict[str, str]
    tests: list[str]
    edits: list[Edit]
    bugs: list[Bug]
    own_threads: bool


# Where a frame is moved so that its uses after return show, g++ 12 aligns it too little for stores
# of 64 bytes, which then fault.
HAS_AVX512 = "avx512f" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
BUGGY = Path("csrc/cpu/lmo.cpp")
PLANTED = f"""#include <cstdlib>
#include <string_view>
static bool planted(std::string_view name) {{
  const char* chosen = std::getenv("{CHOICE}");
  return chosen && name == chosen;
}}
"""
KINDS = {
    "address": Sanitizer(
        # AddressSanitizer itself sees the bad pointers, and vector loads fault where they must be
        # aligned: the checks left out would double the time of the build.
        "-fsanitize=address,undefined -fno-sanitize=null,alignment,object-size,vptr "
        "-fno-sanitize-recover=all",
        ("libasan.so", "libubsan.so", "libstdc++.so"),
        {
            # Python and torch keep memory to the end.
            "ASAN_OPTIONS": "detect_leaks=0:strict_init_order=1:"
            f"detect_stack_use_after_return={int(not HAS_AVX512)}",
            "UBSAN_OPTIONS": "print_stacktrace=1",
        },
        OPERATOR_TESTS,
        [
            Edit(
                "c_.reserve(padded(in.n_rows))",
                'c_.reserve(planted("bounds") ? in.n_rows - 1 : padded(in.n_rows))',
            ),
            Edit(
                "answer.vertex = s;",
                'answer.vertex = planted("overflow") ? int32_t(s) * 1000000000 : s;\n'
                'if (planted("shift")) answer.vertex += 1 << int(s);',
            ),
        ],
        [
            Bug("bounds", "heap-buffer-overflow"),
            Bug("overflow", "signed integer overflow"),
            Bug("shift", "shift exponent 32 is too large"),
        ],
        own_threads=False,
    ),
    "thread": Sanitizer(
        "-fsanitize=thread",
        ("libtsan.so", "libstdc++.so"),
        {
            "TSAN_OPTIONS": "halt_on_error=1:exitcode=66:ignore_noninstrumented_modules=1:"
            f"suppressions={SANITIZERS / 'thread.supp'}",
            "OMP_NUM_THREADS": "1",
        },
        THREAD_TESTS,
        [
            Edit(
                "answer.vertex = s;",
                "answer.vertex = s;\nstatic int64_t shared;\n"
                'if (planted("race")) answer.vertex += ++shared;',
            )
        ],
        [Bug("race", "data race")],
        own_threads=True,
    ),
}


class Build:
    """The extension of a copy of the sources, with the Python files beside it."""

    def __init__(self, name: str, kind: Sanitizer) -> None:
        self._kind = kind
        self._home = ROOT / "build" / "sanitized" / name
        self.source = self._home / "source"
        self.objects = self._home / "objects"
        self.package = self._home / "package"
        self.reports = self._home / "reports"

    def copy_sources(self) -> None:
        """Those that differ, so that what has not changed is not compiled again."""
        here = [
            path
            for folder in ("csrc", "cmake")
            for path in (ROOT / folder).rglob("*.*")
        ]
        for path in [ROOT / "CMakeLists.txt", *here]:
            name = path.relative_to(ROOT)
            text = path.read_text(encoding="utf-8")
            if name == BUGGY:
                text = planted(text, self._kind.edits)
            there = self.source / name
            if not there.exists() or there.read_text(encoding="utf-8") != text:
                there.parent.mkdir(parents=True, exist_ok=True)
                there.write_text(text, encoding="utf-8")

    def configure(self) -> None:
        run("cmake", "-S", self.source, "-B", self.objects, "-G", "Ninja",
            "-DCMAKE_BUILD_TYPE=None", "-DHULLFT_CUDA=OFF", "-DCMAKE_CXX_COMPILER=g++",
            # Half of a unit's time goes into torch's headers.
            "-DCMAKE_UNITY_BUILD=ON", "-DCMAKE_UNITY_BUILD_BATCH_SIZE=0",
            f"-DCMAKE_CXX_FLAGS=-O1 -g1 -fno-omit-frame-pointer {self._kind.flags}",
            f"-DPython_EXECUTABLE={sys.executable}", "-DSKBUILD_PROJECT_VERSION=0",
            "-DSKBUILD_PROJECT_VERSION_FULL=0+sanitized",
            f"-Dpybind11_DIR={pybind11_directory()}")  # fmt: skip

    def compile(self) -> None:
        run("cmake", "--build", self.objects)
        package = self.package / "hullft_ops"
        shutil.copytree(ROOT / "python" / "hullft_ops", package, dirs_exist_ok=True)
        module = f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
        shutil.copy2(self.objects / module, package / module)

    def preloads(self) -> str:
        """Runtimes first. libstdc++ with them, or its exceptions could not be intercepted."""
        libraries = [library(name) for name in self._kind.runtimes]
        if self._kind.own_threads:
            threads = self._home / "parallel_for.so"
            run("g++", "-std=c++20", "-O1", "-g1", "-shared", "-fPIC", "-fsanitize=thread",
                SANITIZERS / "parallel_for.cpp", "-o", threads)  # fmt: skip
            libraries.append(str(threads))
        return ":".join(libraries)


def planted(text: str, edits: list[Edit]) -> str:
    for edit in edits:
        if text.count(edit.right) != 1:
            raise SystemExit(
                f"{BUGGY} does not have {edit.right!r} once: plant another bug"
            )
        text = text.replace(edit.right, edit.wrong)
    return PLANTED + text


def run(*command: str | Path) -> None:
    """With the tools of this Python's environment first."""
    tools = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    words = [str(part) for part in command]
    subprocess.run(
        words, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"PATH": tools}
    )


def library(name: str) -> str:
    path = subprocess.run(
        ["g++", f"-print-file-name={name}"], check=True, capture_output=True, text=True
    ).stdout.strip()
    if not Path(path).is_absolute():
        raise SystemExit(f"g++ has no {name}")
    return str(Path(path).resolve())


def pybind11_directory() -> str:
    import pybind11

    return pybind11.get_cmake_dir()


def python(build: Build, kind: Sanitizer, *arguments: str) -> list[str]:
    """Without randomised addresses, which the thread sanitizer's shadow has no room for."""
    environment = {
        **kind.environment,
        "LD_PRELOAD": build.preloads(),
        "PYTHONMALLOC": "malloc",
    }
    # An editable installation would come before the path.
    start = (
        "import sys\n"
        "sys.meta_path[:] = [f for f in sys.meta_path if 'Editable' not in type(f).__name__ "
        "and 'Redirecting' not in type(f).__name__]\n"
        f"sys.path.insert(0, {str(build.package)!r})\n"
        "import torch, hullft_ops\n"
        f"assert hullft_ops.__file__.startswith({str(build.package)!r}), hullft_ops.__file__\n"
    )
    settings = [f"{name}={value}" for name, value in environment.items()]
    return ["setarch", "-R", "env", *settings, sys.executable, "-c", start + RUN,
            *arguments]  # fmt: skip


def run_tests(build: Build, kind: Sanitizer) -> None:
    build.reports.mkdir(exist_ok=True)
    command = python(
        build, kind, str(build.reports), " ".join(bug.name for bug in kind.bugs),
        "-q", "-x", "-p", "no:cacheprovider", *kind.tests,
    )  # fmt: skip
    finished = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"HYPOTHESIS_PROFILE": "few"}
    )
    if finished.returncode != 0:
        raise SystemExit(
            f"the tests ended with {finished.returncode} under the sanitizer"
        )


def check_planted(build: Build, kind: Sanitizer) -> None:
    for bug in kind.bugs:
        report = (build.reports / bug.name).read_text(encoding="utf-8")
        seen = re.search(f"(runtime error|ERROR|WARNING): .*{bug.report}", report)
        if not seen:
            raise SystemExit(
                f"planted {bug.name!r} and no {bug.report!r} was reported:\n"
                f"{report[-3000:]}"
            )
        print(f"planted {bug.name!r}: {seen.group(0)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("kind", choices=KINDS)
    name = parser.parse_args().kind
    kind = KINDS[name]
    build = Build(name, kind)
    build.copy_sources()
    build.configure()
    build.compile()
    run_tests(build, kind)
    check_planted(build, kind)


if __name__ == "__main__":
    main()
