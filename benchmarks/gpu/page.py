"""The page of a check: at most 40 lines, for a person. The JSON file has the rest."""

from typing import Any

_MOST_FAILURES = 7


def page(summary: dict[str, Any]) -> str:
    """Steps, the first failures, and times with their share of the floor, in Markdown."""
    versions = summary["environment"].get("versions", {})
    of_packages = [f"{name} {versions.get(name)}" for name in ("torch", "transformers")]
    lines = [f"# GPU check: {summary['card']}", ""]
    lines += [", ".join([f"commit {summary['commit']}", summary["date"], *of_packages])]
    lines += ["", "| step | result | seconds | tasks | |", "|---|---|---:|---:|---|"]
    failures, times = [], []
    for step in summary["steps"]:
        results = step.get("results", {})
        tasks = results.get("tasks", "")
        lines.append(
            _row(step["name"], step["status"], step["seconds"], tasks, step["why"])
        )
        for task, reasons in results.get("failed", {}).items():
            failures.append(_row(f"{step['name']}: {task}", "; ".join(reasons)[:200]))
        for speed in results.get("speeds", []):
            seconds = speed["seconds"]
            share = f"{speed['floor'] / seconds:.0%}"
            times.append((speed["speed"], f"{1e6 * seconds:,.1f}", share))
    if failures:
        lines += ["", f"| {len(failures)} failed | |", "|---|---|"]
        lines += failures[:_MOST_FAILURES]
    if times:
        head = ("time", "us", "floor / time")
        lines += ["", _row(*head, *head), "|---|---:|---:|---|---:|---:|"]
    for i in range(0, len(times), 2):
        lines.append(_row(*sum(times[i : i + 2], ())))
    return "\n".join(lines) + "\n"


def _row(*cells: object) -> str:
    texts = (str(cell).replace("|", "/").replace("\n", " ") for cell in cells)
    return f"| {' | '.join(texts)} |"
