"""Runs the tasks of steps and writes what they find."""

import argparse
import importlib
from pathlib import Path

import torch

from benchmarks.gpu.tasks import run_tasks

STEPS = (
    "environment",
    "operators",
    "graphs",
    "selection",
    "ttft",
    "replay",
    "estimates",
)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__
    )
    parser.add_argument("steps", choices=STEPS, nargs="+")
    parser.add_argument(
        "--device", default="cuda", help="cuda (the default), cuda:N or cpu"
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--small", action="store_true", help="sizes that prove nothing")
    parser.add_argument("--beside", help="how the names of other files begin")
    parser.add_argument("--task-seconds", type=float, default=60)
    parser.add_argument("--only", default="", help="how the names of tasks begin")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # for captured graphs and for events
    for name in options.steps:
        step = importlib.import_module(f"benchmarks.gpu.{name}")
        traced = {"beside": options.beside} if name == "ttft" else {}
        tasks = step.tasks(device, small=options.small, **traced)
        chosen = (task for task in tasks if task[0].startswith(options.only))
        run_tasks(chosen, options.output, device, options.task_seconds)


if __name__ == "__main__":
    main()
