"""A store of texts whose embeddings you already have, in memory."""

from collections.abc import Sequence

import numpy as np
import torch

from hullft_ops.ttft.store.base import checked_search
from hullft_ops.ttft.store.embedding import NORM_TOLERANCE, for_torch

# Rows to compare with all queries at a time.
_BLOCK_ROWS = 1 << 14


class MemoryStore:
    """A `Store` in memory, without files, FAISS or Arrow. Its search is exact.

    Args:
        texts: at least one.
        embeddings: float32 ``[len(texts), dim]`` on the CPU; row i has norm 1 and embeds
            ``texts[i]``. They are not copied: do not change them afterwards.
        embedder_name: the name of the embedder that made them.

    Raises:
        TypeError: texts are not strings, or embeddings are not float32.
        ValueError: there is no text, or embeddings are on a GPU, have a wrong shape or a norm that
            is not 1.
    """

    def __init__(
        self, texts: Sequence[str], embeddings: np.ndarray | torch.Tensor, embedder_name: str
    ) -> None:
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise TypeError("MemoryStore: texts must be a sequence of strings")
        if len(texts) == 0:
            raise ValueError("MemoryStore: texts is empty")
        self.texts: Sequence[str] = tuple(texts)
        self.embeddings = _checked(embeddings, len(texts))
        self.embedder = embedder_name
        self.dim = self.embeddings.shape[1]

    def __len__(self) -> int:
        return len(self.texts)

    def search(
        self, queries: np.ndarray | torch.Tensor, k: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `Datastore.search`.

        Raises:
            TypeError, ValueError: as `Datastore.search`.
        """
        vectors, k = checked_search("MemoryStore.search", self, queries, k)
        scores = torch.empty(len(vectors), 0, dtype=torch.float32, device="cpu")
        ids = torch.empty(len(vectors), 0, dtype=torch.int64, device="cpu")
        for start in range(0, len(self), _BLOCK_ROWS):
            block = self.embeddings[start : start + _BLOCK_ROWS]
            # In float32, equal rows may get different scores: the product rounds by place.
            found = (vectors.double() @ block.double().T).float()
            places = torch.arange(start, start + len(block), device="cpu").expand(len(vectors), -1)
            # Stable, and lower positions stand first, so they also win ties.
            both = torch.cat([scores, found], dim=1)
            scores, order = both.sort(dim=1, descending=True, stable=True)
            ids = torch.cat([ids, places], dim=1).gather(1, order)[:, :k]
            scores = scores[:, :k]
        return scores, ids


def _checked(given: np.ndarray | torch.Tensor, count: int) -> torch.Tensor:
    if isinstance(given, torch.Tensor) and given.device.type != "cpu":
        raise ValueError(f"MemoryStore: embeddings must be on the CPU, got {given.device}")
    values = for_torch(given) if isinstance(given, np.ndarray) else given
    embeddings = torch.as_tensor(values, device="cpu").detach().contiguous()
    if embeddings.dtype != torch.float32:
        raise TypeError(f"MemoryStore: embeddings must be float32, got {embeddings.dtype}")
    if embeddings.ndim != 2 or embeddings.shape[0] != count or embeddings.shape[1] == 0:
        raise ValueError(
            f"MemoryStore: embeddings must have shape [{count}, dim] for {count} texts, "
            f"got {list(embeddings.shape)}"
        )
    norms = torch.linalg.vector_norm(embeddings, dim=1)
    # The comparison is false for NaN.
    wrong = (~((norms - 1).abs() < NORM_TOLERANCE)).nonzero().flatten()
    if len(wrong):
        raise ValueError(
            f"MemoryStore: embeddings must be unit vectors, row {wrong[0]} has norm "
            f"{norms[wrong[0]]}"
        )
    return embeddings
