"""The progress of a job whose output goes into a file: lines, as the job goes on."""

from io import StringIO
from threading import Event

import pytest
from rich.console import Console

from hullft_ops.ttft import _progress
from hullft_ops.ttft._progress import progress_bar


class Lines(StringIO):
    """A file that says when a line has come."""

    def __init__(self) -> None:
        super().__init__()
        self.came = Event()

    def write(self, text: str) -> int:
        written = super().write(text)
        self.came.set()
        return written


def test_a_file_gets_lines_with_counts_rate_and_time_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_progress, "_SECONDS_PER_LINE", 1e-3)
    out, now = Lines(), [0.0]
    with progress_bar(Console(file=out, width=20)) as bar:
        bar.get_time = lambda: now[0]
        task = bar.add_task("a job with a long name", total=5000)
        for _ in range(3):
            now[0] += 20
            bar.advance(task, 500)
        # The first line may have been under way.
        for _ in range(2):
            out.came.clear()
            assert out.came.wait(30)
    *_, during, last = out.getvalue().splitlines()
    assert during == last
    assert (
        last
        == "a job with a long name: 1,500 of 5,000, 25/s, 0:01:00 so far, 0:02:20 left"
    )


def test_what_has_no_known_number_or_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    out = StringIO()
    with progress_bar(Console(file=out)) as bar:
        bar.get_time = lambda: 7.0
        list(bar.track((n for n in range(3)), description="writing"))
        bar.add_task("evaluating", total=2)
    assert (
        out.getvalue()
        == "writing: 3, 0:00:00 so far\nevaluating: 0 of 2, 0:00:00 so far\n"
    )


@pytest.mark.parametrize(
    ("console", "shown"),
    [
        ({"quiet": True}, True),
        ({}, False),
        ({"force_terminal": True, "quiet": True}, True),
    ],
)
def test_nothing_is_written_if_nothing_is_to_be_shown(
    console: dict[str, bool], shown: bool
) -> None:
    out = StringIO()
    with progress_bar(Console(file=out, **console), shown=shown) as bar:
        bar.add_task("a job", total=2)
    assert out.getvalue() == ""
