"""Which processes there are, from /proc, and waiting for what becomes of them."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def content(file: Path) -> bytes:
    """Of a file in /proc; nothing once its process is gone."""
    try:
        return file.read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def is_running(pid: int) -> bool:
    """False for a process that has ended, even if its parent has not waited for it, as in Ray."""
    return content(Path(f"/proc/{pid}/cmdline")) != b""


def below(pid: int) -> set[int]:
    """All descendants of the process ``pid``."""
    found: set[int] = set()
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, content(task).split()):
            found |= {child} | below(child)

    return found


def wait_for(condition: Callable[[], Any], seconds: float = 300) -> Any:
    """What the condition gives once that is true."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"

        time.sleep(0.01)

    return found
