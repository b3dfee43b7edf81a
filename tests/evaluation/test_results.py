"""The results file: no finished row is ever lost, and no other file is taken for one."""

import json
import lzma
import resource
from pathlib import Path
from typing import Any

import pytest

from evaluation_rows import PLAIN, result_row
from hullft_ops.evaluation.results import Row, read_rows
from hullft_ops.ttft.records import open_records
from hullft_ops.ttft.validation import InputError

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Three rows."""
    path = tmp_path / "rows.jsonl"
    with open_records(path, "r", Row) as results:
        for n in range(3):
            results.append(result_row(f"p{n}", domain="日本\n\u2028"))

    return path


def refused(path: Path, message: str) -> None:
    """It is, with one line that begins with the file, and stays as it is."""
    content = path.read_bytes()

    with pytest.raises(InputError) as error, open_records(path, "r", Row):
        pass

    assert str(error.value).startswith(f"results {path}: {message}")
    assert "\n" not in str(error.value)
    assert path.read_bytes() == content


def test_rows_come_back_as_they_were(file: Path) -> None:
    rows = [result_row(f"p{n}", domain="日本\n\u2028") for n in range(3)]

    assert read_rows(file) == rows

    with open_records(file, "r", Row) as results:
        assert list(results.rows.values()) == rows


def test_a_last_line_that_a_kill_cut_off_is_dropped(file: Path) -> None:
    content = file.read_bytes()
    whole = content[: content[:-1].rfind(b"\n") + 1]
    for end in range(len(whole), len(content) - 1):
        file.write_bytes(content[:end])

        assert len(read_rows(file)) == 2

        with open_records(file, "r", Row) as results:
            assert file.read_bytes() == whole

            results.append(result_row("p2", domain="日本\n\u2028"))

        assert file.read_bytes() == content


def test_the_first_row_may_be_cut_off_too(tmp_path: Path) -> None:
    path, run = tmp_path / "rows.jsonl", "0123456789abcdef"
    content = result_row("p", run=run).model_dump_json().encode()
    path.write_bytes(content[:100])

    assert read_rows(path) == []

    with open_records(path, run, Row):
        assert path.read_bytes() == b""


def test_a_full_disk_has_a_name(tmp_path: Path) -> None:
    path, run = tmp_path / "rows.jsonl", "0123456789abcdef"
    size, largest = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, largest))
    try:
        with (
            pytest.raises(OSError, match=f"too large: '{path}'"),
            open_records(path, run, Row) as results,
        ):
            results.append(result_row("p", run=run))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, largest))

    with open_records(path, run, Row) as results:
        results.append(result_row("p", run=run))

    assert len(read_rows(path)) == 1


@pytest.mark.parametrize(
    "content",
    [
        b"notes without a line end",
        b"notes\n",
        b"{}\n",
        b"\n",
        b"{",
        b'{"runs": 1',
        b'{"run":' * 1000 + b"\n",
        b'{"run":{"cmd":"x"},"important":true}',
    ],
)
def test_a_file_of_the_user_stays_as_it_is(content: bytes, file: Path) -> None:
    rows = file.read_bytes()
    file.write_bytes(content)
    refused(file, "line 1: ")

    if content.endswith(b"\n") and content != b"\n":
        file.write_bytes(rows + content)
        refused(file, "line 4: ")


def test_one_process_writes_at_a_time(file: Path) -> None:
    with open_records(file, "r", Row):
        refused(file, "another process writes to it")


@pytest.mark.parametrize(
    ("forged", "message"),
    [
        ({"scores": {"prompt": {"before": -1, "after": 1.0}}}, "scores.prompt.before"),
        ({"seconds": {"embed": float("nan")}}, "seconds.embed must be"),
        ({"prompt": "\ud800"}, "Invalid JSON"),
    ],
)
def test_a_forged_row_is_refused_with_its_line(
    forged: dict[str, Any], message: str, file: Path
) -> None:
    line = json.dumps(PLAIN | {"prompt": "p9"} | forged)
    file.write_bytes(file.read_bytes() + line.encode() + b"\n")
    refused(file, f"line 4: {message}")


@pytest.mark.parametrize(
    "path", sorted(RESULTS.rglob("*.xz")), ids=lambda path: path.name
)
def test_the_committed_rows_can_be_read(path: Path) -> None:
    for row in read_rows(path):
        assert row.settings
        assert row.scores
        assert all(score.after > 0 for score in row.scores.values())
        assert row.seconds_total > 0


def test_compressed_rows_are_read_and_not_added_to(file: Path) -> None:
    rows = read_rows(file)
    whole = lzma.compress(file.read_bytes())
    file.write_bytes(whole)

    assert read_rows(file) == rows

    refused(file, "")

    file.write_bytes(whole[:-9])

    with pytest.raises(InputError, match="Compressed (data|file) ended"):
        read_rows(file)
