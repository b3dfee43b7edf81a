"""A picture of an adaptation: the file, and what matplotlib is told to draw."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import torch
from matplotlib.figure import Figure

from hullft_ops.ttft import TestTimeFinetuner, plot_adaptation

PROMPT = "the cat sat"


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were saved."""
    saved: list[Figure] = []
    save = Figure.savefig

    def recording(self: Figure, *arguments: Any, **options: Any) -> None:
        saved.append(self)
        save(self, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", recording)
    return saved


def draw(finetuner: TestTimeFinetuner, path: Path, embedder: Any) -> Any:
    """The adaptation that was drawn."""
    with finetuner.adapted(PROMPT) as adaptation:
        pass

    query = embedder.encode([PROMPT])[0]
    plot_adaptation(path, finetuner, adaptation, query, before=3.25, after=2.5)
    return adaptation


def test_it_draws_every_passage_and_every_pass(
    make: Callable[..., TestTimeFinetuner],
    gpt2: torch.nn.Module,
    embedder: Any,
    tmp_path: Path,
    figures: list[Figure],
) -> None:
    path = tmp_path / "plot.png"
    path.write_text("the picture of an earlier run")
    # Two passes of twelve steps leave passages without one.
    finetuner = make(gpt2, context=2, passes=2)
    adaptation = draw(finetuner, path, embedder)

    assert matplotlib.image.imread(path).shape == (1500, 1200, 4)
    assert [file.name for file in tmp_path.glob("plot*")] == ["plot.png"]

    [figure] = figures
    passages, losses = figure.axes
    drawn = {c.get_label(): c for c in passages.collections if c.get_offsets().size}
    support = adaptation.support

    assert len(drawn["nearest passages"].get_offsets()) == 30

    trained = drawn["trained on, sized by steps"]
    taken = [steps for steps in adaptation.steps if steps]
    idle = drawn["selected, no step"]
    assert len(trained.get_offsets()) == len(taken)
    assert len(idle.get_offsets()) == len(support.indices) - len(taken) > 0

    # The sizes rank as the steps.
    sizes = trained.get_sizes().tolist()
    assert sizes == pytest.approx([40 + 400 * n / max(taken) for n in taken])
    assert support.context_indices
    assert len(drawn["before the prompt"].get_offsets()) == len(support.context_indices)
    assert len(drawn["prompt"].get_offsets()) == 1
    assert f"weighted mean, {support.residual:.2f} from the prompt" in drawn

    [line] = losses.get_lines()
    steps, values = line.get_data()
    assert line.get_linestyle() == "None"

    assert list(values) == adaptation.losses
    assert steps[0] == 0
    assert sorted(steps) == list(steps)
    assert steps[-1] < sum(adaptation.steps)
    taken_in_all = f"{sum(taken)} steps with {adaptation.passes} gradients"
    assert losses.get_title(loc="left") == taken_in_all
    assert figure.get_suptitle().endswith("3.250 before, 2.500 after")


def test_without_steps_there_is_the_pool_alone(
    make: Callable[..., TestTimeFinetuner],
    gpt2: torch.nn.Module,
    embedder: Any,
    tmp_path: Path,
    figures: list[Figure],
) -> None:
    draw(make(gpt2, n_select=0), tmp_path / "plot.png", embedder)
    [figure] = figures
    labels = {collection.get_label() for collection in figure.axes[0].collections}

    assert labels == {"nearest passages", "prompt"}


def test_a_picture_that_fails_leaves_the_old_one(
    make: Callable[..., TestTimeFinetuner],
    gpt2: torch.nn.Module,
    embedder: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("the disk is full")

    path = tmp_path / "plot.png"
    path.write_text("old")
    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="the disk is full"):
        draw(make(gpt2), path, embedder)

    assert path.read_text() == "old"
    assert list(tmp_path.glob(".*")) == []
