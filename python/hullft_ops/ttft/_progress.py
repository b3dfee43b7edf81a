"""The progress of long jobs: a bar on a terminal, elsewhere a line every few seconds."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from threading import Event, Thread

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TimeRemainingColumn,
)

from hullft_ops._terminal import show

_SECONDS_PER_LINE = 5.0
# A step may take a minute, and its rate needs two steps.
_SECONDS_OF_RATE = 600.0


@contextmanager
def progress_bar(
    console: Console | None = None, *, shown: bool = True
) -> Iterator[Progress]:
    """Shows a description, how many of how many, and the time that remains; None for stderr."""
    console = console or Console(stderr=True)
    if not shown or console.quiet or console.is_interactive or console.is_jupyter:
        count = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(
            "{task.description}", *count, console=console, disable=not shown
        ) as bar:
            yield bar
        return
    # Rich's own display would write nothing before the end.
    bar = Progress(
        console=console, disable=True, speed_estimate_period=_SECONDS_OF_RATE
    )
    ended = Event()

    def print_lines() -> None:
        while not ended.wait(_SECONDS_PER_LINE):
            for task in bar.tasks[-1:]:
                show(console, _line(task))

    thread = Thread(target=print_lines, daemon=True)
    thread.start()
    try:
        yield bar
    finally:
        ended.set()
        thread.join()
        for task in bar.tasks:
            show(console, _line(task))


def _line(task: Task) -> str:
    count = f"{task.completed:,.0f}" + (
        "" if task.total is None else f" of {task.total:,.0f}"
    )
    parts = [f"{task.description}: {count}"]
    if task.speed:
        parts.append(
            f"{task.speed:,.0f}/s" if task.speed >= 10 else f"{task.speed:.2g}/s"
        )
    parts.append(f"{timedelta(seconds=round(task.elapsed or 0))} so far")
    if not task.finished and task.time_remaining is not None:
        parts.append(f"{timedelta(seconds=round(task.time_remaining))} left")
    return ", ".join(parts)
