"""Turns the file that a step of the GPU check has written into results for JSON."""

import csv
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any


def read_json(output: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    return results


def read_junit(output: Path) -> dict[str, Any]:
    """Counts, the reasons of skipped tests, and the names of failed ones."""
    suite = ElementTree.parse(output).getroot()[0]
    counts = {
        name: int(suite.get(name, 0))
        for name in ("tests", "failures", "errors", "skipped")
    }
    skipped: dict[str, int] = {}
    failed = []
    for case in suite.iter("testcase"):
        for skip in case.iter("skipped"):
            reason = skip.get("message", "")
            skipped[reason] = skipped.get(reason, 0) + 1
        if case.find("failure") is not None or case.find("error") is not None:
            failed.append(f"{case.get('classname')}::{case.get('name')}")
    if counts["tests"] == counts["skipped"]:
        raise ValueError("no test ran")
    return {**counts, "why skipped": skipped, "failed": failed}


def read_ncu(output: Path) -> dict[str, Any]:
    """Each kernel's metrics, with their units, from the page of details."""
    lines = output.read_text(encoding="utf-8").splitlines()
    start = next(
        (i for i, line in enumerate(lines) if line.startswith('"ID"')), len(lines)
    )
    metrics: dict[str, dict[str, str]] = {}
    for row in csv.DictReader(lines[start:]):
        if row["Metric Name"]:
            of_kernel = metrics.setdefault(row["Kernel Name"], {})
            of_kernel[row["Metric Name"]] = (
                f"{row['Metric Value']} {row['Metric Unit']}".strip()
            )
    if not metrics:
        raise ValueError("no launch was profiled")
    return {"metrics": metrics}
