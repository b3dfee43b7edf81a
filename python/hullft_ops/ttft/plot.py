"""A picture of an adaptation: the passages that it chose, and the loss of its passes."""

from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from hullft_ops.ttft.adaptation import Adaptation
    from hullft_ops.ttft.finetuner import TestTimeFinetuner

from hullft_ops._extras import needed_by
from hullft_ops.ttft.files import replacing

# Okabe and Ito's colours, which colour-blind readers tell apart.
_BLUE, _SKY, _RED, _ORANGE, _GREY = (
    "#0072B2",
    "#56B4E9",
    "#D55E00",
    "#E69F00",
    "#999999",
)


def plot_adaptation(
    path: str | Path,
    finetuner: "TestTimeFinetuner",
    adaptation: "Adaptation",
    query: np.ndarray,
    *,
    before: float,
    after: float,
) -> None:
    """Draw an adaptation as a PNG, which replaces ``path`` whole.

    The passages are drawn in the first two principal components of the pool and the prompt.

    Args:
        path: the file.
        finetuner: what adapted.
        adaptation: what it did; the model may be restored already.
        query: float32 ``[dim]``, the prompt's embedding.
        before, after: bits per byte of the prompt; NaN for a prompt of one token.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: query does not fit the datastore.
    """
    with needed_by("plot_adaptation", "plot"):
        from matplotlib.figure import Figure
    figure = Figure(figsize=(8, 10), layout="constrained")
    passages, losses = figure.subplots(2, 1, height_ratios=[3, 2])
    _draw_passages(passages, finetuner, adaptation, query)
    _draw_losses(losses, adaptation)
    if not isnan(before):
        figure.suptitle(
            f"Bits per byte of the prompt: {before:.3f} before, {after:.3f} after"
        )
    with replacing(Path(path)) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def _draw_passages(
    axes: "Axes",
    finetuner: "TestTimeFinetuner",
    adaptation: "Adaptation",
    query: np.ndarray,
) -> None:
    store, support = finetuner.store, adaptation.support
    pool_size = min(finetuner.config.pool_size, len(store))
    _, nearest = store.search(query[None], pool_size)
    prompt = torch.from_numpy(query)[None]
    pool = store.embeddings[nearest[0]]
    around = torch.cat([pool, prompt])
    centre = around.mean(0)
    _, _, components = torch.linalg.svd(around - centre, full_matrices=False)
    plane = components[:2].T
    axes.set_xlabel("first principal component")
    axes.set_ylabel("second principal component")

    def scatter(
        vectors: Tensor, label: str, color: str, marker: str, sizes: list[float]
    ) -> None:
        if len(vectors) == 0:
            return
        x, y = ((vectors - centre) @ plane).T.tolist()
        axes.scatter(x, y, sizes, color, marker=marker, edgecolor="white", label=label)

    scatter(pool, "nearest passages", _GREY, "o", [12.0] * len(pool))
    if support.indices:
        chosen = store.embeddings[torch.tensor(support.indices)]
        steps = torch.tensor(adaptation.steps)
        trained, idle = chosen[steps > 0], chosen[steps == 0]
        sizes = 40 + 400 * steps[steps > 0] / steps.max()
        scatter(trained, "trained on, sized by steps", _BLUE, "o", sizes.tolist())
        scatter(idle, "selected, no step", _SKY, "o", [40.0] * len(idle))
        mean = torch.tensor(support.weights) @ chosen
        label = f"weighted mean, {support.residual:.2f} from the prompt"
        scatter(mean[None], label, "black", "X", [90.0])
    context = store.embeddings[torch.tensor(support.context_indices, dtype=torch.int64)]
    scatter(context, "before the prompt", _ORANGE, "s", [60.0] * len(context))
    scatter(prompt, "prompt", _RED, "*", [250.0])
    axes.legend()


def _draw_losses(axes: "Axes", adaptation: "Adaptation") -> None:
    losses = adaptation.losses
    # A budget may have ended before the last passes. Each loss is of another passage, so no line
    # joins them.
    starts = [taken.start for taken in adaptation.schedule[: len(losses)]]
    axes.plot(starts, losses, "o", color=_BLUE)
    axes.locator_params(axis="x", integer=True)
    axes.set_title(
        f"{sum(adaptation.steps)} steps with {len(losses)} gradients", loc="left"
    )
    axes.set_xlabel("optimizer steps before the pass")
    axes.set_ylabel("loss of its passage (nats per token)")
