"""What the finetuner needs from a store, what every search checks, and a store in memory."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from hullft_ops._checks import check_integer, check_text
from hullft_ops.ttft.store.embedding import for_torch, not_unit

# Vectors to search for, and the scores and positions of texts near them.
Queries = np.ndarray | torch.Tensor
Found = tuple[torch.Tensor, torch.Tensor]

# Rows of a store in memory to convert to float64 at a time.
_BLOCK_ROWS = 1 << 14


class Store(Protocol):
    """Texts with their embeddings, searched by inner product. Any object with these members is one:
    `Datastore` on disk, `MemoryStore`, `DatabaseStore`, `ShardedStore`."""

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

    def search(self, queries: Queries, k: int) -> Found:
        """Scores float32 ``[B, k]`` and positions int64 ``[B, k]``, nearest first."""


def checked_search(
    function: str, store: Store, given: Queries, k: int
) -> tuple[torch.Tensor, int]:
    """Queries float32 ``[B, dim]`` on the CPU and ``k``, with the errors of `Datastore.search`."""
    queries = _floats(function, "queries", given)
    shape = list(queries.shape)
    if shape[1:] != [store.dim]:
        raise ValueError(
            f"{function}: queries must have shape [B, {store.dim}], got {shape}"
        )
    if not queries.isfinite().all():
        raise ValueError(f"{function}: queries must be finite")
    k = check_integer(function, "k", k, 1)
    if k > len(store):
        raise ValueError(f"{function}: k is {k}, the store has {len(store)} texts")
    return queries, k


def _floats(function: str, name: str, given: Queries) -> torch.Tensor:
    tensor = (
        torch.from_numpy(for_torch(given)) if isinstance(given, np.ndarray) else given
    )
    if not isinstance(tensor, torch.Tensor):
        kind = "a float32 NumPy array or torch.Tensor"
        raise TypeError(
            f"{function}: {name} must be {kind}, got {type(given).__name__}"
        )
    if tensor.device.type != "cpu":
        raise ValueError(f"{function}: {name} must be on the CPU, got {tensor.device}")
    if tensor.dtype != torch.float32:
        raise TypeError(f"{function}: {name} must be float32, got {tensor.dtype}")
    return tensor.detach().contiguous()


class MemoryStore:
    """A `Store` in memory, without files, FAISS or Arrow. Its search is exact.

    Args:
        texts: at least one.
        embeddings: float32 ``[len(texts), dim]`` on the CPU; row i has norm 1 and embeds
            ``texts[i]``. They are not copied: do not change them afterwards.
        embedder_name: the name of the embedder that made them.

    Raises:
        TypeError: a text or the name is not a str, or embeddings are not float32.
        ValueError: there is no text, one is not valid Unicode, or embeddings are on a GPU, have a
            wrong shape or a norm that is not 1.
    """

    def __init__(
        self,
        texts: Sequence[str],
        embeddings: np.ndarray | torch.Tensor,
        embedder_name: str,
    ) -> None:
        if isinstance(texts, str):
            raise TypeError("MemoryStore: texts must be a sequence of str, got one str")
        texts = tuple(texts)
        for i, text in enumerate(texts):
            check_text("MemoryStore", f"texts[{i}]", text)
        check_text("MemoryStore", "embedder_name", embedder_name)
        if len(texts) == 0:
            raise ValueError("MemoryStore: texts is empty")
        vectors = _floats("MemoryStore", "embeddings", embeddings)
        must, count, shape = (
            "MemoryStore: embeddings must",
            len(texts),
            list(vectors.shape),
        )
        if len(shape) != 2 or shape[0] != count or shape[1] == 0:
            raise ValueError(
                f"{must} have shape [{count}, dim] for {count} texts, got {shape}"
            )
        if wrong := not_unit(vectors.numpy()):
            row, norm = wrong
            raise ValueError(f"{must} be unit vectors, row {row} has norm {norm}")
        self.texts: Sequence[str] = texts
        self.embeddings = vectors
        self.embedder = embedder_name
        self.dim = vectors.shape[1]

    def __len__(self) -> int:
        return len(self.texts)

    def search(self, queries: Queries, k: int) -> Found:
        """As `Datastore.search`, with the same errors."""
        vectors, k = checked_search("MemoryStore.search", self, queries, k)
        # In float32, equal rows may get different scores: the product rounds by place.
        parts = torch.split(self.embeddings, _BLOCK_ROWS)
        products = [(vectors.double() @ part.double().T).float() for part in parts]
        # Stable, so the lower position comes first of equal scores.
        scores, order = torch.cat(products, dim=1).sort(
            dim=1, descending=True, stable=True
        )
        return scores[:, :k], order[:, :k]
