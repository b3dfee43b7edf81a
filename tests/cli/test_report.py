"""The numbers of a comparison, and the table, JSON and PNG made of them."""

import io
import json
import struct
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
from rich.console import Console

from hullft_ops.ttft.comparison import METHODS, Comparison, PromptRuns, Run
from hullft_ops.ttft.finetuner import AdaptationReport
from hullft_ops.ttft.report import (
    comparison_sentences,
    comparison_table,
    write_json,
    write_plot,
)

BITS = {
    "none": (2.0, 1.0, 3.0),
    "knn": (1.8, 0.9, 2.7),
    "hullft_refresh1": (1.5, 0.95, 2.5),
    "hullft_refresh2": (1.6, 0.8, 2.6),
}


def report(prompt: int) -> AdaptationReport:
    return AdaptationReport(
        method="hullft",
        n_select=3,
        refresh=2,
        support_size=2,
        indices=[4, 1],
        weights=[0.75, 0.25],
        counts=[2, 1],
        residual=0.5,
        gap=0.01,
        seconds_embed=0.25,
        seconds_search=0.125,
        seconds_select=0.125,
        seconds_finetune=prompt + 1,
        forward_backward_passes=2,
        optimizer_steps=3,
        losses=[1.0, 2.0],
    )


def comparison(bits: dict[str, tuple[float, ...]] = BITS) -> Comparison:
    """Three prompts; an adapted run takes 1.5, 2.5 and 3.5 seconds in all."""

    def run(key: str, prompt: int) -> Run:
        return Run(bits[key][prompt], None if key == "none" else report(prompt))

    prompts = [
        PromptRuns(f"file{i}.py", f"text {i} é", {key: run(key, i) for key in bits})
        for i in range(3)
    ]
    return Comparison({"config": {"lr": 0.1}}, prompts)


def test_means_and_relative_change() -> None:
    mean = comparison().mean("hullft_refresh2")
    assert mean.bits_per_byte == pytest.approx(5.0 / 3)
    assert (mean.seconds_embed, mean.seconds_search, mean.seconds_select) == (0.25, 0.125, 0.125)
    assert (mean.seconds_finetune, mean.seconds_total) == (2.0, 2.5)
    assert (mean.forward_backward_passes, mean.optimizer_steps, mean.support_size) == (2, 3, 2)
    assert comparison().relative_to_none("knn") == pytest.approx(-0.1)
    assert comparison().relative_to_none("none") == 0
    assert comparison().mean("none").seconds_total == 0


def test_verdicts() -> None:
    assert comparison().verdicts() == {
        "knn_below_none": True,
        "hullft_below_none": True,
        "hullft_below_knn": True,
        "prompts": 3,
        "prompts_below_none": {"knn": 3, "hullft_refresh1": 3, "hullft_refresh2": 3},
        "prompts_below_knn": {"hullft_refresh1": 2, "hullft_refresh2": 3},
    }


@pytest.mark.parametrize("key", ["hullft_refresh1", "hullft_refresh2"])
@pytest.mark.parametrize("other", ["knn", "none"])
def test_one_hullft_setting_that_is_not_below_makes_the_verdict_false(key: str, other: str) -> None:
    equal = comparison({**BITS, key: BITS[other]})
    assert equal.verdicts()[f"hullft_below_{other}"] is False


def test_json_holds_every_number(tmp_path: Path) -> None:
    measured = comparison()
    write_json(measured, tmp_path / "demo.json")
    read = json.loads((tmp_path / "demo.json").read_text(encoding="utf-8"))
    assert read["config"] == {"lr": 0.1}
    assert read["verdicts"] == measured.verdicts()
    assert list(read["methods"]) == [method.key for method in METHODS]
    for key, numbers in read["methods"].items():
        mean = measured.mean(key)
        assert {name: numbers[name] for name in asdict(mean)} == asdict(mean)
        assert numbers["seconds_total"] == mean.seconds_total
        assert numbers["relative_to_none"] == measured.relative_to_none(key)
    assert [read["methods"][key]["refresh"] for key in BITS] == [None, 1, 1, 2]
    assert read["prompts"] == [asdict(prompt) for prompt in measured.prompts]
    assert [path.name for path in tmp_path.iterdir()] == ["demo.json"]


@pytest.mark.parametrize("write", [write_json, write_plot])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    write: Callable[[Comparison, Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_text("old")
    monkeypatch.setattr(Path, "replace", _disk_full)
    with pytest.raises(OSError, match="disk full"):
        write(comparison(), file)
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def _disk_full(*_: object) -> None:
    raise OSError("disk full")


def test_no_number_that_json_does_not_know(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(comparison({**BITS, "knn": (float("nan"),) * 3}), tmp_path / "demo.json")
    assert not list(tmp_path.iterdir())


def test_table_shows_every_method_within_80_columns() -> None:
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(comparison_table(comparison()))
    lines = [" ".join(line.split()) for line in console.export_text().splitlines()]
    table = lines[lines.index("no adaptation 2.0000") :]
    assert table[1:4] == [
        "kNN 1.8000 -10.0% 0.375 0.1250 2.00 2.0 2.0",
        "HullFT refresh 1 1.6500 -17.5% 0.375 0.1250 2.00 2.0 2.0",
        "HullFT refresh 2 1.6667 -16.7% 0.375 0.1250 2.00 2.0 2.0",
    ]


def test_sentences_count_prompts() -> None:
    assert comparison_sentences(comparison()) == [
        "Fewer bits than no adaptation: kNN on 3 of 3 prompts, "
        "HullFT refresh 1 on 3 of 3 prompts, HullFT refresh 2 on 3 of 3 prompts.",
        "Fewer bits than kNN: "
        "HullFT refresh 1 on 2 of 3 prompts, HullFT refresh 2 on 3 of 3 prompts.",
    ]


def test_a_sentence_says_when_adapting_hurts() -> None:
    worse = comparison({**BITS, "knn": (2.5, 1.5, 3.0)})
    assert comparison_sentences(worse)[2:] == [
        "Adapting hurts: on average, prompts take more bits with kNN than without."
    ]


def test_plot_is_a_png_of_the_stated_size(tmp_path: Path) -> None:
    write_plot(comparison(), tmp_path / "demo.png")
    content = (tmp_path / "demo.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert content.endswith(b"IEND\xaeB`\x82")
    assert struct.unpack(">II", content[16:24]) == (1080, 660)
    assert [path.name for path in tmp_path.iterdir()] == ["demo.png"]
