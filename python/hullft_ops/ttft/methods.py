"""How the texts to finetune on are chosen among a prompt's neighbours."""

import hashlib
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch

import hullft_ops
from hullft_ops._checks import check_integer, check_noise, check_variant

METHODS = ("hullft", "knn", "random", "sift")
# Steps for a prompt: a selection and its training hold memory for each.
MAX_STEPS = 100_000


class SelectionMethod(Protocol):
    """Any function of this signature is a method: a plain one, or an object with ``__call__``.

    Its ``name`` where it has one, else its own or its class's, goes into reports. Where it has a
    true ``one_step_each``, it is asked for no more steps than there are candidates.
    """

    def __call__(
        self,
        embeddings: torch.Tensor,
        candidates: torch.Tensor,
        queries: torch.Tensor,
        n_select: int,
        /,
    ) -> hullft_ops.Selection:
        """Choose for each of B prompts.

        Args:
            embeddings: float32 ``[M, d]``, of every text of the datastore.
            candidates: int64 ``[B, K]``, rows of it near each prompt, nearest first.
            queries: float32 ``[B, d]``, the prompts.
            n_select: optimizer steps for each prompt.

        Returns:
            What `hullft_ops.fw_select_indexed` returns for the same arguments: ``indices`` are
            positions in ``candidates``, different ones, and each row of ``counts`` holds no
            negative number and sums to ``n_select``.
        """


@dataclass(frozen=True)
class HullFT:
    """`hullft_ops.fw_select_indexed`; ``variant`` is that of Frank-Wolfe."""

    variant: str = "vanilla"
    name: ClassVar[str] = "hullft"

    def __post_init__(self) -> None:
        check_variant("TestTimeFinetuner", self.variant)

    def __call__(
        self,
        embeddings: torch.Tensor,
        candidates: torch.Tensor,
        queries: torch.Tensor,
        n_select: int,
    ) -> hullft_ops.Selection:
        return hullft_ops.fw_select_indexed(
            embeddings, candidates, queries, n_select, variant=self.variant
        )


@dataclass(frozen=True)
class KNN:
    """A step on each of the ``n_select`` nearest, or of a smaller pool."""

    name: ClassVar[str] = "knn"
    one_step_each: ClassVar[bool] = True

    def __call__(
        self,
        embeddings: torch.Tensor,
        candidates: torch.Tensor,
        queries: torch.Tensor,
        n_select: int,
    ) -> hullft_ops.Selection:
        return hullft_ops.knn_select(embeddings[candidates], queries, n_select)


@dataclass(frozen=True)
class Random:
    """A step on each of ``n_select`` neighbours drawn without replacement, or of a smaller pool.

    The draw depends on ``seed`` and the prompt alone, not on those before it or in its batch.
    """

    seed: int = 0
    name: ClassVar[str] = "random"
    one_step_each: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_integer("Random", "seed", self.seed, 0)

    def __call__(
        self,
        embeddings: torch.Tensor,
        candidates: torch.Tensor,
        queries: torch.Tensor,
        n_select: int,
    ) -> hullft_ops.Selection:
        drawn = [self._draw(query, candidates.shape[1], n_select) for query in queries]
        return _uniform(embeddings[candidates], queries, torch.stack(drawn))

    def _draw(self, query: torch.Tensor, size: int, n_select: int) -> torch.Tensor:
        key = str(self.seed).encode() + query.contiguous().cpu().numpy().tobytes()
        seed = int.from_bytes(hashlib.sha256(key).digest()[:8]) >> 1
        generator = torch.Generator("cpu").manual_seed(seed)
        return torch.randperm(size, generator=generator, device="cpu")[:n_select]


@dataclass(frozen=True)
class Sift:
    """`hullft_ops.sift_select_indexed`, whose ``noise`` this is; a step for every pick of a text.

    The steps come by text, the most often picked first, not in the order of the picks.
    """

    noise: float = 0.01
    name: ClassVar[str] = "sift"

    def __post_init__(self) -> None:
        check_noise("Sift", self.noise)

    def __call__(
        self,
        embeddings: torch.Tensor,
        candidates: torch.Tensor,
        queries: torch.Tensor,
        n_select: int,
    ) -> hullft_ops.Selection:
        return hullft_ops.sift_select_indexed(
            embeddings, candidates, queries, n_select, noise=self.noise
        ).selection


def _uniform(
    pools: torch.Tensor, queries: torch.Tensor, indices: torch.Tensor
) -> hullft_ops.Selection:
    """Of pools [B, K, d] the rows at indices [B, n], each once and of equal weight."""
    batch, n_select = indices.shape
    x, q = pools.double(), queries.double()
    residuals = q - x.gather(1, indices[..., None].expand(-1, -1, x.shape[-1])).mean(1)
    correlation = torch.einsum("bkd,bd->bk", x, residuals)
    gap = correlation.amax(1) - correlation.gather(1, indices).mean(1)
    return hullft_ops.Selection(
        indices=indices,
        weights=residuals.new_full((batch, n_select), 1 / n_select, dtype=torch.float32),
        counts=torch.ones_like(indices),
        support_size=indices.new_full((batch,), n_select),
        residual=residuals.norm(dim=1).float(),
        gap=gap.float(),
        num_iter=indices.new_zeros(batch),
    )


def selection_method(method: "str | SelectionMethod", variant: str) -> SelectionMethod:
    """The method of that name, or the method itself.

    Raises:
        ValueError: no such name or variant.
        TypeError: neither a name nor callable.
    """
    check_variant("TestTimeFinetuner", variant)
    if not isinstance(method, str):
        if not callable(method):
            raise TypeError(
                "TestTimeFinetuner: method must be a name or a SelectionMethod, "
                f"got {type(method).__name__}"
            )
        return method
    named: dict[str, SelectionMethod] = {
        "hullft": HullFT(variant),
        "knn": KNN(),
        "random": Random(),
        "sift": Sift(),
    }
    if method not in named:
        raise ValueError(
            f"TestTimeFinetuner: method must be one of {', '.join(METHODS)}, got {method!r}"
        )
    return named[method]


def method_name(method: SelectionMethod) -> str:
    """What reports call it."""
    return str(getattr(method, "name", getattr(method, "__name__", type(method).__name__)))


def steps_of(method: SelectionMethod, n_select: int, pool: int) -> int:
    """How many of ``n_select`` steps it takes on a pool of that many texts."""
    return min(n_select, pool) if getattr(method, "one_step_each", False) else n_select
