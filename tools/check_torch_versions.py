"""Builds one wheel and runs the operator smoke test in a new environment for each torch.

python tools/check_torch_versions.py 2.11.0 2.13.0 [--work DIR] [--wheel FILE]

Each environment downloads its torch (some GB for the CUDA builds), so this is not part of the
tests. The wheel is built against the torch that the build isolation picks.
"""

import argparse
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent


def run(*command: str | Path) -> None:
    subprocess.run([str(part) for part in command], check=True)


def build_wheel(work: Path) -> Path:
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", work / "wheel", ROOT)
    (wheel,) = (work / "wheel").glob("hullft_ops-*.whl")
    return wheel


def check(wheel: Path, version: str, work: Path) -> None:
    home = work / f"torch-{version}"
    python = home / "bin" / "python"
    if not python.exists():
        venv.create(home, with_pip=True)
    run(python, "-m", "pip", "install", "-q", f"torch=={version}", "numpy")
    run(python, "-m", "pip", "install", "-q", "--force-reinstall", "--no-deps", wheel)
    run(python, ROOT / "tools" / "operator_smoke.py")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("versions", nargs="+", metavar="TORCH")
    parser.add_argument("--work", type=Path, help="keeps the environments here for the next run")
    parser.add_argument("--wheel", type=Path, help="a wheel that is already built")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        wheel = args.wheel or build_wheel(work)
        for version in args.versions:
            check(wheel, version, work)


if __name__ == "__main__":
    main()
