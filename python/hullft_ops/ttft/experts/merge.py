"""Experts merged into a model's weights: which ones, with what weights, and in place."""

from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

import hullft_ops
from hullft_ops._checks import check_finite, check_integer, check_member, check_noise
from hullft_ops.ttft.experts.folder import Experts, Factors
from hullft_ops.ttft.store.base import Store
from hullft_ops.ttft.training.steps import StageClock

# Differences of one parameter, each with its share in the mixture.
Shares = list[tuple[Factors | torch.Tensor, float]]
# A parameter, and what to add to it.
Addition = tuple[nn.Parameter, Shares]
# Experts and their convex weights, largest first.
Mixture = tuple[list[int], list[float]]


@dataclass
class ExpertMerger:
    """Merges at most ``count`` of a prompt's experts into a model, multiplied by ``scale``.

    ``trained`` are the model's parameters that are saved and restored.
    """

    model: "PreTrainedModel"
    trained: Sequence[nn.Parameter]
    store: Store
    experts: Experts | None
    count: int
    scale: float
    temperature: float | None

    def __post_init__(self) -> None:
        self.count = check_integer("TestTimeFinetuner", "n_experts", self.count, 0)
        if self.experts is not None:
            kind = "an Experts, as Experts.open returns"
            check_member("TestTimeFinetuner", "experts", self.experts, "digest", kind)
        check_finite("TestTimeFinetuner", "expert_scale", self.scale)
        if self.temperature is not None:
            check_noise("TestTimeFinetuner", self.temperature, "expert_temperature")
        if not self.count:
            self.experts = None
        if self.experts is not None:
            self.experts.check(self.model, self.store, self.count)

    def weigh(self, queries: torch.Tensor) -> list[Mixture]:
        """The experts of each prompt, ``queries`` float32 [B, dim], and their convex weights.

        Without a temperature the weights are those of `hullft_ops.fw_select` over the centroids.
        With one they are a softmax over the ``count`` largest cosine similarities divided by it.
        """
        if self.experts is None:
            return [([], [])] * len(queries)
        centroids = self.experts.centroids
        if self.temperature is not None:
            mixtures = []
            # One by one: a product for the whole batch would round otherwise than for one prompt.
            for query in queries:
                top = torch.cosine_similarity(centroids, query[None]).topk(self.count)
                weights = torch.softmax(top.values / self.temperature, 0)
                mixtures.append((top.indices.tolist(), weights.tolist()))
            return mixtures
        found = hullft_ops.fw_select(centroids, queries, self.count, variant="pairwise")
        sizes = found.support_size.tolist()
        rows = zip(found.indices.tolist(), found.weights.tolist(), sizes, strict=True)
        return [(indices[:size], weights[:size]) for indices, weights, size in rows]

    def read(
        self, indices: Sequence[int], weights: Sequence[float], clock: StageClock
    ) -> list[Addition]:
        """What `add` adds. Reads the experts' files, checks all of it and touches no weight."""
        if not indices:
            return []
        if self.experts is None:
            raise ValueError(
                f"TestTimeFinetuner: this support has {len(indices)} experts, so it needs a "
                "finetuner with experts, and n_experts above 0"
            )
        found: dict[str, Shares] = defaultdict(list)
        # Reading the files and checking their sums takes as long as adding them. Threads share it.
        with clock.of("merge"), ThreadPoolExecutor() as threads:
            updates = threads.map(self.experts.update, indices)
            for expert, weight in zip(updates, weights, strict=True):
                for name, update in expert.items():
                    found[name].append((update, self.scale * weight))
        parameters = dict(self.model.named_parameters())
        trained = set(map(id, self.trained))
        for name, shares in found.items():
            if name not in parameters or id(parameters[name]) not in trained:
                raise ValueError(
                    "TestTimeFinetuner: experts may change only parameters with requires_grad "
                    f"of the model, {name} is {'frozen' if name in parameters else 'none of it'}"
                )
            for update, _ in shares:
                if update.shape != parameters[name].shape:
                    raise ValueError(
                        f"TestTimeFinetuner: the experts' {name} has shape {list(update.shape)}, "
                        f"the model's has {list(parameters[name].shape)}"
                    )
        return [(parameters[name], shares) for name, shares in found.items()]


def add(additions: Sequence[Addition], clock: StageClock) -> None:
    """Add to each parameter, in place. All factors of a parameter take one product."""
    if not additions:
        return
    # Most weights have the same ranks and shares. A new tensor for each would take long.
    columns: dict[tuple[tuple[int, float], ...], torch.Tensor] = {}
    # In inference mode, torch would not count these writes.
    with clock.of("merge"), torch.inference_mode(False), torch.no_grad():
        for parameter, shares in additions:
            low = [(one, share) for one, share in shares if isinstance(one, Factors)]
            if low:
                b, a = (
                    torch.cat([one.b for one, _ in low], 1),
                    torch.cat([one.a for one, _ in low]),
                )
                scales = tuple((len(one.a), one.scale * share) for one, share in low)
                if scales not in columns:
                    values = [[scale] for rank, scale in scales for _ in range(rank)]
                    columns[scales] = torch.tensor(
                        values, dtype=torch.float32, device=a.device
                    )
                parameter.addmm_(b.to(parameter), a.mul_(columns[scales]).to(parameter))
            for one, share in shares:
                if isinstance(one, torch.Tensor):
                    parameter.add_(one.to(parameter), alpha=share)
        # A caller's autocast would keep using its copies of the old weights.
        torch.clear_autocast_cache()
