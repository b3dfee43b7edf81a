"""``evaluate`` and ``answer`` under kill -9 at random moments; ``--kills 20`` kills more.

Every row that was reported as done is there after the kill, and the next run ends as one that
nobody killed would have. The command runs in a forked process, which has everything imported, so
that a random moment is one of its work.
"""

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from command import succeeded
from forked import forked, status_of
from hullft_ops.cli.answer import Answer
from hullft_ops.evaluation.results import Row
from hullft_ops.ttft.records import Records, read_records


@pytest.fixture
def arguments(
    kind: type,
    models_of: list[object],
    store: Path,
    texts: list[str],
    tmp_path: Path,
) -> list[object]:
    """A command that writes twelve rows."""
    prompts = tmp_path / "prompts.jsonl"
    count = 3 if kind is Row else 12
    lines = [json.dumps({"text": text}) + "\n" for text in texts[:count]]
    prompts.write_text("".join(lines))
    inputs = [*models_of, "--store", store, "--lr", 0.01, "--ngrams", 0]
    if kind is Row:
        grid = ["--method", "knn", "hullft", "--n-select", 3, 5, "--context", 0]
        return ["evaluate", *inputs, "--prompts", prompts, *grid]

    short = ["--n-select", 3, "--max-new-tokens", 8]
    return ["answer", prompts, "--prompt-column", "text", *inputs, *short]


def killed_after(seconds: float, arguments: list[object]) -> tuple[bool, list[str]]:
    """Whether the command was still running then, and the rows that it reported as done."""
    reader, writer = os.pipe()

    def run_reporting() -> None:
        append = Records.append

        def append_and_report(self: Records, row: Any) -> None:
            append(self, row)
            os.write(writer, (json.dumps(row.key) + "\n").encode())

        Records.append = append_and_report  # type: ignore[method-assign]
        succeeded(*arguments)

    child = forked(run_reporting, seconds=300)
    os.close(writer)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    status = status_of(child)

    assert status in (0, -signal.SIGKILL)

    with os.fdopen(reader) as lines:
        return status != 0, lines.read().splitlines()


def whole_lines(file: Path) -> list[bytes]:
    content = file.read_bytes() if file.exists() else b""
    return content.split(b"\n")[:-1]


def untimed(file: Path) -> list[dict[str, Any]]:
    """The rows in order, without their seconds."""
    rows = [json.loads(line) for line in whole_lines(file)]
    for row in rows:
        row.pop("seconds", None)

    return rows


@pytest.mark.parametrize("kind", [Row, Answer])
def test_no_finished_row_is_lost(
    kind: type,
    pytestconfig: pytest.Config,
    arguments: list[object],
    tmp_path: Path,
) -> None:
    whole = tmp_path / "whole.jsonl"
    start = time.monotonic()
    succeeded(*arguments, "--output", whole)
    duration = time.monotonic() - start

    assert len(whole_lines(whole)) == 12

    count = pytestconfig.getoption("--kills")
    moments = random.Random(0)
    kills = tries = 0
    while kills < count:
        tries += 1
        assert tries <= 5 * count, "the command ends before it is killed"

        file = tmp_path / f"try{tries}.jsonl"
        moment = moments.uniform(0, duration)
        killed, reported = killed_after(moment, [*arguments, "--output", file])
        kills += killed
        if not killed:
            # The machine is less busy now than when the command was timed.
            duration = moment

        lines = whole_lines(file)
        rows = read_records(file, kind) if file.exists() else []

        assert set(reported) <= {json.dumps(row.key) for row in rows}

        succeeded(*arguments, "--output", file)
        assert whole_lines(file)[: len(lines)] == lines
        assert untimed(file) == untimed(whole)
