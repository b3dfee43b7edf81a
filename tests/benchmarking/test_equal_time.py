"""The study at equal time: its tables, against means made by hand."""

import sys
from pathlib import Path

import pytest
from benchmarks.studies import equal_time

from evaluation_rows import result_row

BITS = {
    ("knn", 1): {5: [2.0, 4.0], 10: [1.0, 3.0]},
    ("hullft", 2): {5: [1.0, 3.0], 10: [1.0, 2.5]},
}


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Two methods on two prompts, and one of them on a third."""
    lines = []
    for (method, refresh), points in BITS.items():
        for passes, values in points.items():
            settings = {"method": method, "n_select": 20, "refresh": refresh}
            settings |= {"lr": 1e-4, "passes": passes}
            third = [9.0] if method == "knn" else []
            for prompt, bits in enumerate([*values, *third]):
                row = result_row(
                    f"p{prompt}",
                    config=f"{method} {passes}",
                    settings=settings,
                    before=5.0,
                    after=bits,
                )
                lines.append(row.model_dump_json())
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(line + "\n" for line in lines))
    return file


def test_tables_are_over_the_prompts_that_all_methods_have(
    rows: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    picture = tmp_path / "bits.png"
    monkeypatch.setattr(
        sys, "argv", ["equal_time", str(rows), "--picture", str(picture)]
    )
    equal_time.main()
    lines = capsys.readouterr().out.splitlines()

    assert "| 2 prompts | 5 passes | 10 passes | seconds |" in lines
    assert "| no adaptation | 5.0000 | 5.0000 |  |" in lines
    assert "| kNN 20, refresh 1, lr 0.0001 | 3.0000 | 2.0000 | 0.5 |" in lines
    assert "| HullFT 20, refresh 2, lr 0.0001 | 2.0000 | 1.7500 | 0.5 |" in lines

    [pair] = [
        line for line in lines if line.startswith("| HullFT 20") and "kNN" in line
    ]
    assert "-33.3%" in pair
    assert "fewer on 2 of 2" in pair
    assert "-12.5%" in pair
    assert "fewer on 1 of 2" in pair
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_passages_alone_are_a_rival_after_any_number_of_passes(rows: Path) -> None:
    both = rows.read_text().replace('"passes":', '"context":5,"passes":')
    steps = [equal_time.Row.model_validate_json(line) for line in both.splitlines()]
    alone = []
    for prompt in ("p0", "p1"):
        settings = {"method": "hullft", "n_select": 0, "context": 5}
        alone.append(result_row(prompt, config="no steps", settings=settings))
    curves = equal_time.curves_of([*steps, *alone], context=5)

    assert curves[equal_time.PASSAGES_ALONE] == {5: alone, 10: alone}
    [line] = [line for line in equal_time.comparisons(curves) if "| passages" in line]
    assert line.startswith("| HullFT 20, refresh 2, lr 0.0001 | passages alone | ")


def test_each_method_at_its_best_rate(rows: Path) -> None:
    other = rows.read_text().replace('"lr":0.0001', '"lr":0.01').replace("knn ", "k ")
    other = other.replace('"after":1.0', '"after":0.5')
    rows.write_text(rows.read_text() + other.replace('"config":"hullft', '"config":"h'))
    curves = equal_time.curves_of(equal_time.read_rows(rows), context=0)

    assert len(curves) == 4
    assert list(equal_time.at_best_rates(curves)) == [
        "HullFT 20, refresh 2, lr 0.01",
        "kNN 20, refresh 1, lr 0.01",
    ]


@pytest.mark.parametrize(
    ("change", "other"),
    [
        ('2,"order":"grouped"', "refresh 2, order grouped, lr 0.0001"),
        ("3", "refresh 3, lr 0.0001"),
    ],
)
def test_orders_and_refreshes_are_compared(rows: Path, change: str, other: str) -> None:
    varied = rows.read_text().replace('"refresh":2', f'"refresh":{change}')
    varied = varied.replace('"after":1.0', '"after":2.0')
    varied = varied.replace('"config":"', '"config":"varied ')
    both = [*rows.read_text().splitlines(), *varied.splitlines()]
    rows.write_text("".join(line + "\n" for line in both if '"hullft"' in line))
    [line] = equal_time.variants(equal_time.curves_of(equal_time.read_rows(rows), 0))

    assert line.startswith(
        f"| HullFT 20, refresh 2, lr 0.0001 | HullFT 20, {other} | -20.0%"
    )


def test_prompts_must_be_shared(rows: Path) -> None:
    other = [line for line in rows.read_text().splitlines() if '"hullft' in line]
    moved = [line.replace('"prompt":"p', '"prompt":"q') for line in other]
    kept = [line for line in rows.read_text().splitlines() if '"hullft' not in line]
    rows.write_text("".join(line + "\n" for line in kept + moved))
    with pytest.raises(SystemExit, match="no prompt has all configurations"):
        equal_time.curves_of(equal_time.read_rows(rows), context=0)
