"""Runs one step, and writes its results whenever there are more."""

import argparse
import importlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

STEPS = (
    "environment",
    "operators",
    "graphs",
    "selection",
    "replay",
    "ttft",
    "launches",
)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__
    )
    parser.add_argument("step", choices=STEPS)
    parser.add_argument(
        "--device", default="cuda", help="cuda (the default), cuda:N or cpu"
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--small", action="store_true", help="sizes that prove nothing")
    parser.add_argument("--beside", help="how the names of other files begin")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # for captured graphs and for events
    step = importlib.import_module(f"benchmarks.gpu.{options.step}")
    traced = {"beside": options.beside} if options.step == "ttft" else {}
    results: Iterator[dict[str, Any]] = step.run(device, small=options.small, **traced)
    for so_far in results:
        # The file must be whole even if this process is stopped.
        scratch = options.output.with_suffix(".partial")
        scratch.write_text(json.dumps(finite(so_far), allow_nan=False))
        scratch.replace(options.output)


def finite(value: Any) -> Any:
    """The value with None for NaN and infinity. They are results too, but JSON lacks them."""
    if isinstance(value, dict):
        return {name: finite(each) for name, each in value.items()}
    if isinstance(value, list):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    main()
