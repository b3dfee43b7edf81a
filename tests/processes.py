"""Which processes there are, from /proc."""

from pathlib import Path


def content(file: Path) -> bytes:
    """Of a file in /proc; nothing once its process is gone."""
    try:
        return file.read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def is_running(pid: int) -> bool:
    """Not so a process that has ended, whose parent, as some versions of Ray, does not wait."""
    return content(Path(f"/proc/{pid}/cmdline")) != b""


def below(pid: int) -> set[int]:
    """All processes that ``pid`` started, and those that these started."""
    found: set[int] = set()
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, content(task).split()):
            found |= {child} | below(child)
    return found
