"""Experts merged into a model's weights: which ones, with what weights, and in place."""

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

import hullft_ops
from hullft_ops._checks import check_finite, check_integer, check_noise
from hullft_ops.ttft.experts.folder import Experts, Factors
from hullft_ops.ttft.model.steps import StageClock
from hullft_ops.ttft.store.base import Store

# Differences of one parameter, each with its share in the mixture.
Shares = list[tuple[Factors | torch.Tensor, float]]
# A parameter, and what to add to it.
Addition = tuple[nn.Parameter, Shares]
# Experts and their convex weights, largest first.
Mixture = tuple[list[int], list[float]]


class ExpertMerger:
    """Merges the experts of a prompt's region into a model.

    Args:
        model: the model.
        trained: its parameters that are saved and restored.
        store: the datastore that the prompts' neighbours come from.
        experts: experts of this model and datastore; None for none.
        count: how many of them to merge at most.
        scale: multiplies the merged difference.
        temperature: None for the weights of `hullft_ops.fw_select` over the centroids. A number for
            the softmax of the similarities divided by it, see `weigh`.

    Raises:
        TypeError: the count is not an int, or the scale or temperature is not a number.
        ValueError: a number is out of range, or the experts are of another model or datastore, or
            fewer than ``count``.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        trained: Sequence[nn.Parameter],
        store: Store,
        experts: Experts | None,
        count: int,
        scale: float,
        temperature: float | None,
    ) -> None:
        count = check_integer("TestTimeFinetuner", "n_experts", count, 0)
        check_finite("TestTimeFinetuner", "expert_scale", scale)
        if temperature is not None:
            check_noise("TestTimeFinetuner", temperature, "expert_temperature")
        if experts is not None and count:
            experts.check(model, store, count)
        self._model = model
        self._trained = trained
        self._experts = experts if count else None
        self._count = count
        self._scale = scale
        self._temperature = temperature

    def weigh(self, queries: torch.Tensor) -> list[Mixture]:
        """The experts of each prompt, ``queries`` float32 [B, dim], and their convex weights.

        With the hull's weights the mean of the centroids is as near to the query as the steps of
        Frank-Wolfe bring it. The softmax is over the ``count`` centroids of the largest cosine
        similarity.
        """
        if self._experts is None:
            return [([], [])] * len(queries)
        centroids = self._experts.centroids
        if self._temperature is not None:
            # One by one: a product for the whole batch would round otherwise than for one prompt.
            return [_softmax(centroids, query, self._count, self._temperature) for query in queries]
        found = hullft_ops.fw_select(centroids, queries, self._count, variant="pairwise")
        sizes = found.support_size.tolist()
        rows = zip(found.indices.tolist(), found.weights.tolist(), sizes, strict=True)
        return [(indices[:size], weights[:size]) for indices, weights, size in rows]

    def read(
        self, indices: Sequence[int], weights: Sequence[float], clock: StageClock
    ) -> list[Addition]:
        """What `add` adds. Reads the experts' files and touches no weight.

        Raises:
            ValueError: there are no experts to read, one changes a weight that the model does not
                have or train, or that has another shape, or its files are damaged.
            OSError: its files cannot be read.
        """
        if not indices:
            return []
        if self._experts is None:
            raise ValueError(
                f"TestTimeFinetuner: this support has {len(indices)} experts, so it needs a "
                "finetuner with experts, and n_experts above 0"
            )
        found: dict[str, Shares] = defaultdict(list)
        with clock.of("merge"):
            for index, weight in zip(indices, weights, strict=True):
                for name, update in self._experts.update(index).items():
                    found[name].append((update, self._scale * weight))
            return self._checked(found)

    def _checked(self, found: dict[str, Shares]) -> list[Addition]:
        parameters = dict(self._model.named_parameters())
        trained = set(map(id, self._trained))
        for name, shares in found.items():
            if name not in parameters or id(parameters[name]) not in trained:
                raise ValueError(
                    "TestTimeFinetuner: what experts change must be a parameter with requires_grad "
                    f"of the model, {name} is {'frozen' if name in parameters else 'none of it'}"
                )
            wanted = list(parameters[name].shape)
            for shape in (_shape(update) for update, _ in shares):
                if shape != wanted:
                    raise ValueError(
                        f"TestTimeFinetuner: the experts' {name} has shape {shape}, the model's "
                        f"has {wanted}"
                    )
        return [(parameters[name], shares) for name, shares in found.items()]


def add(additions: Sequence[Addition], clock: StageClock) -> None:
    """Add to each parameter, in place. All factors of a parameter take one product."""
    if not additions:
        return
    # A product for each of hundreds of weights: multiplying every factor would take long beside it.
    columns: dict[tuple[tuple[int, float], ...], torch.Tensor] = {}
    # In inference mode, torch would not count these writes.
    with clock.of("merge"), torch.inference_mode(False), torch.no_grad():
        for parameter, shares in additions:
            low = [(one, share) for one, share in shares if isinstance(one, Factors)]
            if low:
                b, a = torch.cat([one.b for one, _ in low], 1), torch.cat([one.a for one, _ in low])
                scales = tuple((len(one.a), one.scale * share) for one, share in low)
                if scales not in columns:
                    columns[scales] = _column(scales, a.device)
                parameter.addmm_(b.to(parameter), a.mul_(columns[scales]).to(parameter))
            for one, share in shares:
                if isinstance(one, torch.Tensor):
                    parameter.add_(one.to(parameter), alpha=share)
        # A caller's autocast would keep using its copies of the old weights.
        torch.clear_autocast_cache()


def _column(scales: Sequence[tuple[int, float]], device: torch.device) -> torch.Tensor:
    """Each scale as often as its rank says, float32 [rows, 1]."""
    values = [[scale] for rank, scale in scales for _ in range(rank)]
    return torch.tensor(values, dtype=torch.float32, device=device)


def _softmax(
    centroids: torch.Tensor, query: torch.Tensor, count: int, temperature: float
) -> Mixture:
    values, indices = torch.cosine_similarity(centroids, query[None]).topk(count)
    return indices.tolist(), torch.softmax(values / temperature, 0).tolist()


def _shape(update: Factors | torch.Tensor) -> list[int]:
    if isinstance(update, Factors):
        return [update.b.shape[0], update.a.shape[1]]
    return list(update.shape)
