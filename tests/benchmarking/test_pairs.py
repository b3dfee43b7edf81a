"""The figures of an evaluation's settings against each other."""

import sys
from pathlib import Path

import pytest
from benchmarks.studies import pairs

from evaluation_rows import result_row

AFTER = {
    ("knn", 5): [2.0, 4.0],
    ("knn", 10): [1.0, 3.0],
    ("hullft", 5): [1.0, 3.0],
    ("hullft", 10): [1.0, 2.5],
    ("no steps", None): [4.0, 4.0],
}


def test_every_setting_against_others(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = {"steps": "", "none": ""}
    for (method, passes), values in AFTER.items():
        settings = {"method": method, "n_select": 20, "passes": passes}
        label = f"{method} n=20 lr=0.1 passes={passes}"
        if passes is None:
            settings, label = {"method": "knn", "n_select": 0}, "no steps context=5"
        for prompt, after in enumerate(values):
            row = result_row(
                f"p{prompt}", config=label, settings=settings, before=5.0, after=after
            )
            kind = "none" if passes is None else "steps"
            lines[kind] += row.model_dump_json() + "\n"
    files = [tmp_path / f"{kind}.jsonl" for kind in lines]
    for file in files:
        file.write_text(lines[file.stem])
    against = ["--against", "knn", "no steps"]
    monkeypatch.setattr(sys, "argv", ["pairs", *map(str, files), *against])
    pairs.main()
    title, head, *rows = capsys.readouterr().out.splitlines()
    cells = {tuple(row.split(" | ")[:2]): row.split(" | ")[2:] for row in rows}

    assert title == "2 prompts, lr=0.1"
    assert head.split(" | ")[4:] == [
        "against no adaptation",
        "against knn n=20",
        "against no steps context=5",
    ]
    assert cells["no adaptation", "10"][0] == "5.0000"
    assert cells["no steps context=5", "5"][:2] == ["4.0000", "0.5 s"]
    assert cells["hullft n=20", "5"][0] == "2.0000"
    assert cells["hullft n=20", "5"][3].startswith("-33.3% [")
    assert cells["hullft n=20", "5"][3].endswith(", better on 2")
    assert cells["hullft n=20", "10"][3].startswith("-12.5% [")
    assert cells["hullft n=20", "10"][3].endswith(", better on 1")
    assert cells["knn n=20", "10"][4].startswith("-50.0% [")


def test_files_of_several_domains_are_one_table(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The second domain lacks a setting.
    afters = {"code": {"knn": 1.0, "sift": 2.0}, "c": {"knn": 3.0}}
    files = []
    for domain, methods in afters.items():
        rows = [
            result_row(f"{domain}{prompt}", run=domain, config=method, after=after)
            for method, after in methods.items()
            for prompt in range(2)
        ]
        files.append(tmp_path / f"{domain}.jsonl")
        files[-1].write_text("".join(row.model_dump_json() + "\n" for row in rows))
    monkeypatch.setattr(sys, "argv", ["pairs", *map(str, files)])
    pairs.main()
    title, _, *rows = capsys.readouterr().out.splitlines()

    assert title.startswith("4 prompts")
    assert [row.split(" | ")[2] for row in rows] == ["2.0000", "2.0000"]
    assert rows[1].endswith("better on 2")
