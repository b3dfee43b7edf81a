"""Builds the sdist and compares what is in it with the files that git tracks.

python tools/check_sdist.py [--out DIR]

It must hold every tracked file but those that only the repository has a use for, and nothing else:
a stray file beside the sources would go to everyone. Needs scikit-build-core, neither torch nor a
compiler.
"""

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REPOSITORY_ONLY = (
    ".ci/",
    ".github/",
    ".gitignore",
    ".pre-commit-config.yaml",
    "benchmarks/results/",
)
ADDED = {"PKG-INFO"}


def differences(tracked: Iterable[str], packed: Iterable[str]) -> list[str]:
    """A line for every file that is missing from the sdist, or should not be in it."""
    expected = {
        name for name in tracked if not name.startswith(REPOSITORY_ONLY)
    } | ADDED
    present = set(packed)
    missing = [f"missing from the sdist: {name}" for name in sorted(expected - present)]
    return missing + [
        f"should not be in the sdist: {name}" for name in sorted(present - expected)
    ]


def build(out: Path) -> Path:
    # Here, since the comparison alone, which the tests have, needs no build backend.
    from scikit_build_core.build import build_sdist

    os.chdir(ROOT)  # what it packs
    return out / build_sdist(str(out))


def tracked_files() -> list[str]:
    listed = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "-z"],
        check=True,
        capture_output=True,
        text=True,
    )
    # A deleted file that is not committed yet is still listed.
    return [
        name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()
    ]


def packed_files(sdist: Path) -> list[str]:
    with tarfile.open(sdist) as archive:
        return [member.name.partition("/")[2] for member in archive if member.isfile()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="keeps the sdist here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        out = (arguments.out or Path(temporary)).resolve()
        out.mkdir(parents=True, exist_ok=True)
        sdist = build(out)
        packed = packed_files(sdist)
        wrong = differences(tracked_files(), packed)
        size = sdist.stat().st_size
    if wrong:
        sys.exit("\n".join(wrong))
    print(
        f"{sdist.name}: {len(packed)} files, {size / 2**20:.1f} MiB, as git tracks them"
    )


if __name__ == "__main__":
    main()
