"""What a step finds, written at once: a line of JSON for each finding.

Nothing is lost if the process dies, and the next one goes on behind the task in which it died.
Needs no torch.
"""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any


class Findings:
    """Appends to a file what the current task finds."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.task = ""

    def start(self, task: str) -> None:
        self.task = task
        self._write({"start": True})

    def end(self, error: str = "", skipped: str = "") -> None:
        """The task is over. It failed if there is an error, or a `must` that is not met."""
        self._write({"error": error, "skipped": skipped})

    def must(self, text: str, measured: float, limit: float) -> None:
        """A result that is right only if it is at most ``limit``."""
        # JSON has no NaN and no infinity.
        value = measured if math.isfinite(measured) else str(measured)
        fact = f"{text}, at most {limit:.3g}"
        self._write({"fact": fact, "value": value, "met": measured <= limit})

    def speed(self, text: str, seconds: float, floor: float) -> None:
        """A time beside the shortest that the card allows. It fails nothing."""
        self._write({"speed": text, "seconds": seconds, "floor": floor})

    def fact(self, name: str, value: Any) -> None:
        self._write({"fact": name, "value": value})

    def _write(self, line: dict[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"task": self.task, **line}) + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The file's lines without one that a kill has cut short."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines


def started(path: Path) -> list[str]:
    """The tasks that were started, in order."""
    return [line["task"] for line in read_lines(path) if "start" in line]


def close(path: Path, why: str) -> bool:
    """Write the reason to every task that was started and is not over. False if all are."""
    over = {line["task"] for line in read_lines(path) if "error" in line}
    cut_short = [task for task in started(path) if task not in over]
    for task in cut_short:
        line = {"task": task, "error": why or "its process ended"}
        with path.open("a", encoding="utf-8") as file:
            file.write(f"\n{json.dumps(line)}\n")
    return bool(cut_short)


def read_findings(path: Path) -> dict[str, Any]:
    """All findings, with the errors and the unmet goals of each task that failed."""
    lines = read_lines(path)
    tasks = {line["task"] for line in lines}
    failed: dict[str, list[str]] = {}
    facts: dict[str, dict[str, Any]] = {}
    for line in lines:
        task = line["task"]
        if "fact" in line:
            facts.setdefault(task, {})[line["fact"]] = line["value"]
        if line.get("met") is False:
            failed.setdefault(task, []).append(f"{line['fact']}: {line['value']}")
        if line.get("error"):
            failed.setdefault(task, []).append(line["error"])
    skipped = Counter(line["skipped"] for line in lines if line.get("skipped"))
    if len(tasks) == skipped.total():
        raise ValueError("nothing ran")
    return {
        "tasks": len(tasks),
        "skipped": skipped,
        "failed": failed,
        "speeds": [line for line in lines if "speed" in line],
        "facts": facts,
    }
