"""Runs one step and writes what it found."""

import argparse
import importlib
import json
from pathlib import Path
from typing import Any

import torch

STEPS = ("environment", "operators", "graphs", "selection", "replay", "ttft")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("--device", default="cuda", help="cuda (the default), cuda:N or cpu")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--small", action="store_true", help="sizes that prove nothing")
    options = parser.parse_args()
    step = importlib.import_module(f"benchmarks.gpu.{options.step}")
    found: dict[str, Any] = step.run(torch.device(options.device), small=options.small)
    options.output.write_text(json.dumps(found, allow_nan=False), encoding="utf-8")


if __name__ == "__main__":
    main()
