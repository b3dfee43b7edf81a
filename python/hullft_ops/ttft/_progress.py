"""The progress of long jobs: a bar on a terminal, elsewhere a line every few seconds."""

from datetime import timedelta
from threading import Event, Thread

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TextColumn,
    TimeRemainingColumn,
)

from hullft_ops._terminal import show

_SECONDS_PER_LINE = 5.0
# A step may take a minute, and its rate needs two steps.
_SECONDS_OF_RATE = 600.0


def progress_bar(console: Console | None = None, *, shown: bool = True) -> Progress:
    """Shows a description, how many of how many, and the time that remains; None for stderr."""
    console = console or Console(stderr=True)
    if shown and not (console.quiet or console.is_interactive or console.is_jupyter):
        return _Lines(console)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not shown,
    )


class _Lines(Progress):
    """A line for the latest task every few seconds, and one for each task at the end."""

    def __init__(self, console: Console) -> None:
        # Rich's own display would write nothing before the end.
        super().__init__(
            console=console,
            disable=True,
            auto_refresh=False,
            speed_estimate_period=_SECONDS_OF_RATE,
        )
        self._ended = Event()
        self._thread = Thread(target=self._print, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()
        self._show(self.tasks)

    def _print(self) -> None:
        while not self._ended.wait(_SECONDS_PER_LINE):
            self._show(self.tasks[-1:])

    def _show(self, tasks: list[Task]) -> None:
        if tasks:
            show(self.console, *map(_line, tasks))


def _line(task: Task) -> str:
    count = f"{task.completed:,.0f}" + ("" if task.total is None else f" of {task.total:,.0f}")
    parts = [f"{task.description}: {count}"]
    if task.speed:
        parts.append(f"{task.speed:,.0f}/s" if task.speed >= 10 else f"{task.speed:.2g}/s")
    parts.append(f"{timedelta(seconds=round(task.elapsed or 0))} so far")
    if not task.finished and task.time_remaining is not None:
        parts.append(f"{timedelta(seconds=round(task.time_remaining))} left")
    return ", ".join(parts)
