"""What the finetuner needs from a store of texts, and what every search checks."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from hullft_ops._checks import check_integer
from hullft_ops.ttft.store.embedding import for_torch


class Store(Protocol):
    """Texts with their embeddings, searched by inner product.

    `Datastore` is on disk, `MemoryStore` in memory, `DatabaseStore` reads a vector database, and
    workers search a `ShardedStore`. Any object with these members will do.
    """

    @property
    def texts(self) -> Sequence[str]:
        """The texts by position."""

    @property
    def embeddings(self) -> torch.Tensor:
        """float32 ``[count, dim]`` on the CPU; row i has norm 1 and embeds ``texts[i]``."""

    @property
    def embedder(self) -> str:
        """The name of the embedder that made the embeddings."""

    @property
    def dim(self) -> int:
        """Length of an embedding."""

    def __len__(self) -> int:
        """The number of texts that a search considers."""

    def search(
        self, queries: np.ndarray | torch.Tensor, k: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores float32 ``[B, k]`` and positions int64 ``[B, k]``, nearest first."""


def checked_search(
    function: str, store: Store, given: np.ndarray | torch.Tensor, k: int
) -> tuple[torch.Tensor, int]:
    """Queries float32 ``[B, dim]``, contiguous and finite on the CPU, and ``k`` in 1..len(store).

    Raises:
        TypeError: queries are not float32, or k is not an int.
        ValueError: queries are on a GPU, have a wrong shape or a value that is not finite, or k is
            out of range.
    """
    if isinstance(given, torch.Tensor) and given.device.type != "cpu":
        raise ValueError(f"{function}: queries must be on the CPU, got {given.device}")
    values = for_torch(given) if isinstance(given, np.ndarray) else given
    queries = torch.as_tensor(values, device="cpu")
    if queries.dtype != torch.float32:
        raise TypeError(f"{function}: queries must be float32, got {queries.dtype}")
    if queries.ndim != 2 or queries.shape[1] != store.dim:
        raise ValueError(
            f"{function}: queries must have shape [B, {store.dim}], got {list(queries.shape)}"
        )
    if not queries.isfinite().all():
        raise ValueError(f"{function}: queries must be finite")
    k = check_integer(function, "k", k, 1)
    if k > len(store):
        raise ValueError(f"{function}: k is {k}, the store has {len(store)} texts")
    return queries.detach().contiguous(), k
