"""Runs the tasks of a step one after the other, whatever becomes of one."""

import faulthandler
import os
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from benchmarks.gpu.findings import Findings, started
from benchmarks.gpu.step import STICKY

Task = tuple[str, Callable[[Findings], object]]


def run_tasks(
    tasks: Iterable[Task], path: Path, device: torch.device, seconds: float
) -> None:
    """Run the tasks that no process before this one has started.

    Ends the process if a task has left an error that stays with it, and, after a dump of its
    threads, if a task takes longer than ``seconds``.
    """
    before = set(started(path))
    findings = Findings(path)
    for name, task in tasks:
        if name in before:
            continue
        # The reports of a sanitizer stand behind it in the log.
        print(f"-- {name}", flush=True)
        findings.start(name)
        faulthandler.dump_traceback_later(seconds, exit=True)
        error = ""
        try:
            task(findings)
            wait_for(device)
        except Exception as raised:
            traceback.print_exc()
            error = described(raised)
        faulthandler.cancel_dump_traceback_later()
        findings.end(error)
        if error and not is_usable(device):
            # Python's ordinary end could hang in CUDA.
            os._exit(STICKY)


def described(error: Exception) -> str:
    """In one line, with the line of source that raised it."""
    text = str(error).partition("\n")[0]
    raised = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(raised.filename).name}:{raised.lineno}: {raised.line}"
    return f"{type(error).__name__}: {text} ({place})"


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def is_usable(device: torch.device) -> bool:
    """False after an error of CUDA that every later call reports again."""
    try:
        torch.zeros(1, device=device).add_(1).item()
    except RuntimeError:
        return False
    return True
