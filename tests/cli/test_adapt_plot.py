"""``hullft-ops adapt --plot``."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from typer.testing import CliRunner, Result

from hullft_ops.cli.app import app
from hullft_ops.ttft import Datastore, load_embedder

PROMPT = "the cat sat on the red mat"
WORDS = ["cat", "dog", "tree", "park"]


@pytest.fixture(scope="module")
def own(
    model_directory: Path,
    embedder_directory: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> list[object]:
    """Arguments for a datastore of 12 texts. One has what matplotlib reads as mathematics."""
    texts = [f"the {WORDS[n % 4]} ran to {n} mat $x^2$" for n in range(12)]
    path = tmp_path_factory.mktemp("store") / "store"
    Datastore.build(texts, load_embedder(str(embedder_directory)), path, progress=False)
    models = ["--model", model_directory, "--embedder", embedder_directory]
    return [*models, "--store", path, "--lr", 0.01, "--prompt", PROMPT, "--n-select", 6]


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["adapt", *map(str, arguments)])


def bits_of(result: Result) -> list[str]:
    assert result.exit_code == 0, result.output
    return re.findall(
        r"bits per byte of the prompt: (\S+) before, (\S+) after", result.stdout
    )[0]


def test_the_picture_appears_and_changes_nothing_else(
    own: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, save = [], Figure.savefig

    def saved(self: Figure, *arguments: Any, **options: Any) -> None:
        found.append(self)
        save(self, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", saved)
    picture = tmp_path / "plot.png"
    plotted, plain = invoke(*own, "--plot", picture), invoke(*own)
    assert bits_of(plotted) == bits_of(plain)
    assert f"plot: {picture}\n" in plotted.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert list(tmp_path.iterdir()) == [picture]
    budgeted = invoke(*own, "--plot", picture, "--seconds", 1e6)
    assert bits_of(budgeted) == bits_of(plain)
    curves = [figure.axes[1].lines[1].get_xydata() for figure in found]
    # Within a budget, nothing is scored between the steps.
    assert (len(curves[0]) > 3, len(curves[1])) == (True, 2)
    for curve in curves:
        assert (curve[0][0], curve[-1][0]) == (0, 6)
        assert [f"{bits:.4f}" for bits in (curve[0][1], curve[-1][1])] == list(
            bits_of(plain)
        )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("plot.jpg", "plot_adaptation: path must end in .png, got "),
        ("nowhere/plot.png", "No such file or directory: "),
        ("folder.png", "folder.png is a folder"),
    ],
)
def test_a_path_that_cannot_be_written_is_refused_before_the_work(
    tmp_path: Path, name: str, message: str
) -> None:
    (tmp_path / "folder.png").mkdir()
    store = ["--store", tmp_path / "no store"]
    result = invoke(*store, "--prompt", PROMPT, "--plot", tmp_path / name)
    assert result.exit_code == 2
    assert message in result.stderr.splitlines()[-1]


def test_without_matplotlib_it_names_the_extra_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    store = ["--store", tmp_path / "no store"]
    result = invoke(*store, "--prompt", PROMPT, "--plot", tmp_path / "plot.png")
    (line,) = result.stderr.splitlines()
    wanted = "plot_adaptation needs matplotlib: pip install '.[plot]' in its checkout"
    assert (result.exit_code, line) == (2, f"hullft-ops adapt: {wanted}")
