"""The picture of an adaptation, and `on_step`, which scores the prompt for it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from transformers import PreTrainedModel

from hullft_ops.ttft import Datastore, TestTimeFinetuner, plot_adaptation

PROMPT = "the cat sat on the red mat"
Make = Callable[..., TestTimeFinetuner]


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were saved."""
    found, save = [], Figure.savefig

    def saved(self: Figure, *arguments: Any, **options: Any) -> None:
        found.append(self)
        save(self, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", saved)
    return found


def test_the_query_must_be_a_tensor(
    gpt2: PreTrainedModel, make: Make, store: Datastore, tmp_path: Path
) -> None:
    with make(gpt2, n_select=0, context=1).adapted(PROMPT) as report:
        query: Any = np.zeros(24, np.float32)
        with pytest.raises(
            TypeError, match="plot_adaptation: query must be .*, got ndarray"
        ):
            plot_adaptation(tmp_path / "plot.png", report, store, query, [(0, 1.0)])


@pytest.mark.parametrize("order", ["grouped", "interleaved"])
def test_on_step_sees_the_model_between_the_steps(
    gpt2: PreTrainedModel, make: Make, order: str
) -> None:
    seen: list[tuple[int, float]] = []

    def score(steps: int) -> None:
        seen.append((steps, watched.score_text(PROMPT).value))

    plain, watched = make(gpt2, order=order), make(gpt2, order=order, on_step=score)
    before = plain.score_text(PROMPT).value
    with plain.adapted(PROMPT) as report:
        after = plain.score_text(PROMPT).value
    with watched.adapted(PROMPT) as again:
        assert again.losses == report.losses
    steps = [number for number, _ in seen]
    assert steps == sorted(set(steps))
    assert len(steps) >= 1 + report.forward_backward_passes
    assert (seen[0], seen[-1]) == ((0, before), (12, after))
    assert len({bits for _, bits in seen}) == len(seen)


def test_what_on_step_raises_restores_the_model(
    gpt2: PreTrainedModel, make: Make, bits: Any
) -> None:
    def fail(steps: int) -> None:
        if steps:
            raise KeyError("mine")

    before = bits(gpt2)
    with (
        pytest.raises(KeyError, match="mine"),
        make(gpt2, on_step=fail).adapted(PROMPT),
    ):
        pass
    assert before.changed() == set()


def test_the_picture_shows_texts_by_their_weight_and_the_scores(
    gpt2: PreTrainedModel,
    make: Make,
    store: Datastore,
    embedder: Any,
    tmp_path: Path,
    figures: list[Figure],
) -> None:
    with make(gpt2).adapted(PROMPT) as report:
        pass
    report.context_indices = report.indices[:2]
    query = torch.from_numpy(embedder.encode([PROMPT])[0])
    scores, settings = [(0, 3.5), (6, 3.25), (12, 3.125)], dict(matplotlib.rcParams)
    plot_adaptation(tmp_path / "plot.png", report, store, query, scores, pool_size=30)
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.glob("*plot*")] == ["plot.png"]
    assert dict(matplotlib.rcParams) == settings
    (figure,) = figures
    embeddings, bits = figure.axes
    drawn = {
        c.get_label(): c for c in embeddings.collections if len(c.get_offsets()) == 0
    }
    names = [
        "nearest texts",
        "trained on, sized by steps",
        "weighted mean",
        "read before the prompt",
    ]
    assert [any(name in label for label in drawn) for name in names] == [True] * 4
    pool, chosen, mixture, _, prompt = (
        c for c in embeddings.collections if len(c.get_offsets()) > 0
    )
    assert (len(pool.get_offsets()), len(prompt.get_offsets())) == (30, 1)
    # The projection is affine, so it keeps the mixture of the texts.
    places = np.asarray(chosen.get_offsets())
    mean = np.average(places, axis=0, weights=report.weights)
    np.testing.assert_allclose(mixture.get_offsets()[0], mean, atol=1e-5)
    assert list(np.argsort(chosen.get_sizes(), kind="stable")) == list(
        np.argsort(report.steps_taken, kind="stable")
    )
    (hull,) = embeddings.patches
    corners = hull.get_xy()
    for corner, edge in zip(corners, np.diff(corners, axis=0), strict=False):
        beside = places - corner
        assert (edge[0] * beside[:, 1] - edge[1] * beside[:, 0] > -1e-6).all()
    assert [tuple(point) for point in bits.lines[1].get_xydata()] == scores
    assert "3.500" in bits.get_title(loc="left")
    assert "3.125" in bits.get_title(loc="left")
    lines = figure.texts[0].get_text().splitlines()
    for index, line in zip(report.indices[:5], lines, strict=False):
        assert store.texts[index][:20] in line


def test_a_picture_without_steps_has_the_prompt_alone(
    gpt2: PreTrainedModel, make: Make, store: Datastore, embedder: Any, tmp_path: Path
) -> None:
    with make(gpt2, n_select=0).adapted(PROMPT) as report:
        pass
    query = torch.from_numpy(embedder.encode([PROMPT])[0])
    plot_adaptation(tmp_path / "plot.png", report, store, query, [(0, 3.5)])
    assert (tmp_path / "plot.png").stat().st_size > 0
