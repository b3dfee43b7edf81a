"""The numbers of a comparison, and the table and JSON made of them."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from hullft_ops.ttft.evaluation.comparison import (
    METHODS,
    compare,
    sentences,
    table,
    write_json,
)
from result_rows import SETTINGS, result_row

BITS = {
    "none": (2.0, 1.0, 3.0),
    "knn": (1.8, 0.9, 2.7),
    "hullft_refresh1": (1.5, 0.95, 2.5),
    "hullft_refresh2": (1.6, 0.8, 2.6),
}


def comparison(bits: dict[str, tuple[float, ...]] = BITS) -> dict[str, Any]:
    """Three prompts; an adapted run takes 1.5, 2.5 and 3.5 seconds in all."""
    return compare(
        [
            result_row(
                f"prompt {i}",
                settings=SETTINGS | METHODS[key][1],
                bits_per_byte_before=bits["none"][i],
                bits_per_byte_after=bits[key][i],
                seconds={
                    "embed": 0.25,
                    "search": 0.125,
                    "select": 0.125,
                    "finetune": i + 1,
                },
                passes=2,
            )
            for i in range(3)
            for key in list(bits)[1:]
        ]
    )


def test_means_and_relative_change() -> None:
    methods = comparison()["methods"]
    assert list(methods) == list(BITS)
    assert methods["hullft_refresh2"] == {
        "label": "HullFT refresh 2",
        "refresh": 2,
        "bits_per_byte": pytest.approx(5.0 / 3),
        "seconds_embed": 0.25,
        "seconds_search": 0.125,
        "seconds_select": 0.125,
        "seconds_finetune": 2.0,
        "forward_backward_passes": 2,
        "optimizer_steps": 3,
        "support_size": 2,
        "seconds_total": 2.5,
        "relative_to_none": pytest.approx(-1 / 6),
    }
    assert methods["knn"]["relative_to_none"] == pytest.approx(-0.1)
    label, refresh, bits, *others = methods["none"].values()
    assert (label, refresh, bits) == ("no adaptation", None, 2.0)
    assert set(others) == {0}
    assert methods["none"].keys() == methods["knn"].keys()


def test_verdicts() -> None:
    assert comparison()["verdicts"] == {
        "knn_below_none": True,
        "hullft_below_none": True,
        "hullft_below_knn": True,
        "prompts": 3,
        "prompts_below_none": {"knn": 3, "hullft_refresh1": 3, "hullft_refresh2": 3},
        "prompts_below_knn": {"hullft_refresh1": 2, "hullft_refresh2": 3},
    }


@pytest.mark.parametrize("key", ["hullft_refresh1", "hullft_refresh2"])
@pytest.mark.parametrize("other", ["knn", "none"])
def test_one_hullft_setting_that_is_not_below_makes_the_verdict_false(
    key: str, other: str
) -> None:
    equal = comparison({**BITS, key: BITS[other]})
    assert equal["verdicts"][f"hullft_below_{other}"] is False


def test_json_holds_every_number(tmp_path: Path) -> None:
    measured = comparison() | {"config": {"lr": 0.1}, "text": "é"}
    write_json(measured, tmp_path / "demo.json")
    written = (tmp_path / "demo.json").read_text(encoding="utf-8")
    assert json.loads(written) == measured
    assert "é" in written
    assert [path.name for path in tmp_path.iterdir()] == ["demo.json"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_text("old")
    monkeypatch.setattr(Path, "replace", _disk_full)
    with pytest.raises(OSError, match="disk full"):
        write_json(comparison(), file)
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def _disk_full(*_: object) -> None:
    raise OSError("disk full")


def test_no_number_that_json_does_not_know(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(
            comparison({**BITS, "knn": (float("nan"),) * 3}), tmp_path / "demo.json"
        )
    assert not list(tmp_path.iterdir())


def test_table_shows_every_method_within_80_columns() -> None:
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(table(comparison()))
    lines = [" ".join(line.split()) for line in console.export_text().splitlines()]
    shown = lines[lines.index("no adaptation 2.0000") :]
    assert shown[1:4] == [
        "kNN 1.8000 -10.0% 0.375 0.1250 2.00 2.0 2.0",
        "HullFT refresh 1 1.6500 -17.5% 0.375 0.1250 2.00 2.0 2.0",
        "HullFT refresh 2 1.6667 -16.7% 0.375 0.1250 2.00 2.0 2.0",
    ]


def test_sentences_count_prompts() -> None:
    assert sentences(comparison()) == [
        "Fewer bits than no adaptation: kNN on 3 of 3 prompts, "
        "HullFT refresh 1 on 3 of 3 prompts, HullFT refresh 2 on 3 of 3 prompts.",
        "Fewer bits than kNN: "
        "HullFT refresh 1 on 2 of 3 prompts, HullFT refresh 2 on 3 of 3 prompts.",
    ]


def test_a_sentence_says_when_adapting_hurts() -> None:
    worse = comparison({**BITS, "knn": (2.5, 1.5, 3.0)})
    assert sentences(worse)[2:] == [
        "Adapting hurts: on average, prompts take more bits with kNN than without."
    ]
