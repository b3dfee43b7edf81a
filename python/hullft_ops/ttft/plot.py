"""A picture of an adaptation: the texts and experts of its weights, and what its steps gain."""

import math
import warnings
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes

from hullft_ops._checks import check_tensor
from hullft_ops._extras import needed_by
from hullft_ops._terminal import printable
from hullft_ops.ttft._files import replacing
from hullft_ops.ttft.experts.folder import Experts
from hullft_ops.ttft.report import AdaptationReport
from hullft_ops.ttft.store.base import Store

# Okabe and Ito's colours, which colour-blind readers tell apart.
_BLUE, _RED, _GREEN, _ORANGE, _GREY = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#E69F00",
    "#999999",
)
_LISTED, _EXCERPT = 5, 115


def plot_adaptation(
    path: str | Path,
    report: AdaptationReport,
    store: Store,
    query: Tensor,
    scores: Sequence[tuple[int, float]],
    *,
    experts: Experts | None = None,
    pool_size: int = 200,
) -> None:
    """Draw what an adaptation chose, and the prompt's bits per byte over its steps, as a PNG.

    Embeddings are drawn in the first two principal components of the pool and the prompt. The file
    appears whole. matplotlib's settings stay as they are.

    Args:
        path: a file whose name ends in .png. It is replaced.
        report, store, experts, pool_size: the adaptation's and its finetuner's.
        query: float32 ``[dim]`` on the CPU, the prompt's embedding.
        scores: steps and bits per byte, at least one; the first is without the adaptation.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: query is not a tensor.
        ValueError: the name does not end in .png.
        OSError: the file cannot be written.
    """
    check_plot(path)
    check_tensor("plot_adaptation", "query", query)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7.2))
    left = figure.add_axes((0.07, 0.37, 0.42, 0.58))
    _draw_embeddings(left, report, store, query, experts, pool_size)
    _draw_scores(figure.add_axes((0.57, 0.37, 0.4, 0.58)), scores)
    # Texts may have what matplotlib reads as mathematics.
    below = figure.text(0.03, 0.19, "\n".join(_lines(report, store)), parse_math=False)
    below.set(family="monospace", fontsize=8, linespacing=1.5, verticalalignment="top")
    with replacing(Path(path)) as temporary, warnings.catch_warnings():
        # Its font lacks some scripts, and draws boxes for them.
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(temporary, format="png", dpi=110)


def check_plot(path: str | Path) -> None:
    """Raise what `plot_adaptation` raises, before the work."""
    with needed_by("plot_adaptation", "plot"):
        import matplotlib.figure  # noqa: F401
    if Path(path).suffix != ".png":
        raise ValueError(f"plot_adaptation: path must end in .png, got {path}")
    if Path(path).is_dir():
        raise IsADirectoryError(
            f"plot_adaptation: path must be a file, {path} is a folder"
        )
    try:
        TemporaryFile(dir=Path(path).parent).close()
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(Path(path).parent)) from error


def _draw_embeddings(
    axes: "Axes",
    report: AdaptationReport,
    store: Store,
    query: Tensor,
    experts: Experts | None,
    pool_size: int,
) -> None:
    from matplotlib.patheffects import withStroke

    _, [near] = store.search(query[None], min(pool_size, len(store)))
    around = torch.cat([store.embeddings[near], query[None]])
    centre = around.mean(0)
    _, singular, components = torch.linalg.svd(around - centre)
    plane: Tensor = components[:2].T
    shares = (100 * singular.square() / singular.square().sum()).tolist()
    axes.set_xlabel(f"first principal component ({shares[0]:.0f} % of the variance)")
    axes.set_ylabel(f"second ({shares[1]:.0f} %)")
    title = f"{report.method} trains on {report.support_size} of the {len(near)} nearest texts"
    axes.set_title(title if report.indices else "No text is trained on", loc="left")
    chosen = store.embeddings[torch.tensor(report.indices, dtype=torch.int64)]
    mean = torch.tensor(report.weights) @ chosen if report.indices else query
    outline = [withStroke(linewidth=3, foreground="white")]

    def draw(
        points: Tensor,
        label: str,
        color: str,
        marker: str,
        sizes: Any,
        names: Sequence[int] = (),
    ) -> None:
        places = (points - centre) @ plane
        x, y = places.T.tolist()
        axes.scatter(x, y, sizes, color, marker=marker, edgecolor="white")
        axes.scatter([], [], 60, color, marker=marker, label=label)
        # A name beside its marker, away from the mean, hides neither.
        directions = torch.nn.functional.normalize((points - mean) @ plane)
        offsets = directions * (torch.tensor(sizes)[:, None].sqrt() / 2 + 7)
        for name, place, beside in zip(
            names, places.tolist(), offsets.tolist(), strict=False
        ):
            note = axes.annotate(
                str(name), place, beside, textcoords="offset points", color=color
            )
            note.set(ha="center", va="center", path_effects=outline)

    draw(around[:-1], "nearest texts", _GREY, "o", [12.0] * len(near))
    if report.indices:
        corners, angles = (chosen - centre) @ plane, torch.linspace(0, 2 * math.pi, 721)
        hull = corners[
            (corners @ torch.stack([angles.cos(), angles.sin()])).argmax(0)
        ].T
        axes.fill(*hull, facecolor=f"{_BLUE}22", edgecolor=_BLUE, zorder=0)
        sizes, numbers = _sizes(report.steps_taken), range(1, _LISTED + 1)
        draw(chosen, "trained on, sized by steps", _BLUE, "o", sizes, numbers)
        label = f"weighted mean, {report.residual:.2f} from the prompt"
        draw(mean[None], label, "black", "X", [90.0])
    if experts is not None and report.expert_indices:
        merged, sizes = report.expert_indices, _sizes(report.expert_weights)
        draw(
            experts.centroids[merged],
            "experts, sized by weight",
            _GREEN,
            "D",
            sizes,
            merged,
        )
    if report.context_indices:
        read = store.embeddings[torch.tensor(report.context_indices)]
        draw(read, "read before the prompt", _ORANGE, "s", [60.0] * len(read))
    draw(query[None], "prompt", _RED, "*", [250.0])
    axes.margins(0.08)
    axes.legend(loc="upper left", bbox_to_anchor=(-0.02, -0.1), ncols=2, frameon=False)


def _sizes(amounts: Sequence[float]) -> list[float]:
    """Areas of markers, in points squared."""
    return [40 + 400 * amount / (max(amounts) or 1) for amount in amounts]


def _draw_scores(axes: "Axes", scores: Sequence[tuple[int, float]]) -> None:
    from matplotlib.ticker import MaxNLocator

    steps, bits = zip(*scores, strict=True)
    axes.axhline(bits[0], color=_GREY, linestyle="--")
    axes.plot(steps, bits, "o-", color=_BLUE, clip_on=False)
    axes.text(
        steps[-1], bits[0], "without adapting", ha="right", va="bottom", color="#666666"
    )
    title = f"Bits per byte of the prompt: {bits[0]:.3f} before, {bits[-1]:.3f} after"
    axes.set_title(title, loc="left")
    axes.set(xlabel="optimizer steps", ylabel="bits per byte (lower is better)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)


def _lines(report: AdaptationReport, store: Store) -> list[str]:
    """One for each of the heaviest texts, and one for the experts."""
    chosen = zip(report.indices, report.weights, report.steps_taken, strict=True)
    lines = [
        f"{number}  weight {weight:.2f} {steps:3} steps  {_excerpt(store.texts[index])}"
        for number, (index, weight, steps) in enumerate(
            islice(chosen, _LISTED), start=1
        )
    ]
    if others := report.weights[_LISTED:]:
        lines.append(f"   weight {sum(others):.2f} for the other {len(others)}")
    if report.expert_indices:
        merged = zip(report.expert_indices, report.expert_weights, strict=True)
        shown = ", ".join(f"{index} (weight {weight:.2f})" for index, weight in merged)
        lines.append(f"experts merged: {shown}")
    return lines


def _excerpt(text: str) -> str:
    line = printable(" ".join(text.split()))
    return f"{line[:_EXCERPT]}..." if len(line) > _EXCERPT else line
