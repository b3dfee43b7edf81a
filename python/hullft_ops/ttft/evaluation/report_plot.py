"""Quality against time of every configuration, and which of them no other beats in both."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hullft_ops._files import replacing
from hullft_ops.ttft.evaluation.equal_time import pareto
from hullft_ops.ttft.evaluation.measurements import NONE, Measurements

_MARKERS = "osD^vP*Xhd"


def write_plot(measured: Measurements, path: Path) -> None:
    """Draw bits per byte against seconds as a PNG; the file appears whole or not at all."""
    points = {c: (measured.mean_seconds(c), measured.mean_bits(c)) for c in measured.rows}
    none, count = measured.mean_bits(NONE), len(measured.prompts)
    end = 1.05 * max(seconds for seconds, _ in points.values())
    with quality_plot(path, (8.0, 5.0), none, end, count) as (figure, axes):
        _draw_groups(measured, axes)
        front = [points[name] for name in pareto(points)]
        axes.plot(*zip(*front, strict=True), color="#999999", linewidth=1, zorder=1)
        figure.legend(loc="outside right center", frameon=False)


@contextmanager
def quality_plot(
    path: Path, inches: tuple[float, float], none: float, end: float, prompts: int
) -> Iterator[tuple[Figure, Axes]]:
    """Axes to draw in, with a line at ``none`` bits per byte and seconds up to ``end``.

    After the body they become a PNG; the file appears whole or not at all.
    """
    figure = Figure(figsize=inches, layout="constrained")
    axes = figure.add_subplot()
    axes.axhline(none, color="#666666", linestyle="--", label=f"{NONE}: {none:.3f}")
    axes.set_xlim(0, end)
    axes.set_xlabel("seconds per prompt (embedding, search, selection, finetuning)")
    axes.set_ylabel("bits per byte (lower is better)")
    axes.set_title(f"Test-time finetuning: mean of {prompts} held-out prompts")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    yield figure, axes
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def _draw_groups(measured: Measurements, axes: Axes) -> None:
    groups: dict[str, list[str]] = {}
    for config in measured.rows:
        settings = measured.settings(config)
        groups.setdefault(f"{settings['method']}, refresh {settings['refresh']}", []).append(config)
    for number, (label, configs) in enumerate(sorted(groups.items())):
        # What matplotlib would take for mathematics.
        label = label.replace("$", r"\$")
        points = [(measured.mean_seconds(c), measured.mean_bits(c)) for c in configs]
        marker = _MARKERS[number % len(_MARKERS)]
        # Whole at the edges too, and above the axis.
        seconds, bits = zip(*points, strict=True)
        axes.plot(seconds, bits, marker, markersize=8, label=label, clip_on=False, zorder=3)
