"""What the finetuner needs from a store, an exact search, and a store in memory."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from hullft_ops._checks import check_integer, check_text
from hullft_ops._extras import needed_by
from hullft_ops.ttft.embedding import Embedder

# An embedder that computes in half precision normalises no better than this.
NORM_TOLERANCE = 1e-3


class Store(Protocol):
    """Texts with their embeddings, searched by inner product. Any object with these members is one:
    `Datastore` on disk, `MemoryStore`, or your own.

    If it also has ``words``, that searches by words: ``words.search(query, k)`` gives the positions
    of at most k texts, nearest first, as int64 ``[n]``. The texts of other stores are indexed in
    memory. Without embeddings, for search by words alone, ``embedder`` is None and ``dim`` 0.
    """

    @property
    def texts(self) -> Sequence[str]:
        """The texts by position."""

    @property
    def embedder(self) -> str | None:
        """The name of the embedder that made the embeddings."""

    @property
    def dim(self) -> int:
        """Length of an embedding."""

    @property
    def identity(self) -> str:
        """Differs between stores of different texts, documents or embeddings."""

    def __len__(self) -> int:
        """The number of texts that a search considers."""

    def vectors(self, positions: Tensor) -> Tensor:
        """The embeddings of the texts at ``positions``, int64 ``[n]``: float32 ``[n, dim]`` on the
        CPU, each of norm 1."""

    def search(self, queries: np.ndarray | Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Scores float32 ``[B, k]`` and positions int64 ``[B, k]``, nearest first."""

    def following(self, position: int) -> int | None:
        """The position of the text that comes next in the same document; None if the store knows
        of none."""


class Matrix:
    """Vectors in one matrix, which is searched as a whole.

    Attributes:
        embeddings: float32 ``[M, dim]`` on the CPU, each of norm 1.
    """

    embeddings: Tensor

    def vectors(self, positions: Tensor) -> Tensor:
        """As `Store.vectors`."""
        return self.embeddings[positions]

    def search(self, queries: np.ndarray | Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The ``k`` texts nearest to each query. The search is exact.

        Args:
            queries: float32 ``[B, dim]``, finite, on the CPU like the store.
            k: how many texts, at most ``len(store)``.

        Returns:
            ``(scores, positions)``: inner products float32 ``[B, k]`` and int64 ``[B, k]``, nearest
            first. Of equal scores, the lower position comes first.

        Raises:
            TypeError: k is not an int.
            ValueError: queries have a wrong shape or a value that is not finite, or k is out of
                range.
        """
        function = f"{type(self).__name__}.search"
        count, dim = self.embeddings.shape
        vectors = np.ascontiguousarray(queries, np.float32)
        if vectors.shape[1:] != (dim,) or not np.isfinite(vectors).all():
            raise ValueError(
                f"{function}: queries must be finite and have shape [B, {dim}], got "
                f"{list(vectors.shape)}"
            )
        k = check_integer(function, "k", k, 1, count)
        scores, positions = _nearest(self.embeddings.numpy(), vectors, k)
        return torch.from_numpy(scores), torch.from_numpy(positions)


class MemoryStore(Matrix):
    """A `Store` in memory. Its search is exact.

    Args:
        texts: at least one.
        embeddings: float32 ``[len(texts), dim]`` on the CPU; row i has norm 1 and embeds
            ``texts[i]``. They are not copied: do not change them afterwards. None for search by
            words alone.
        embedder_name: the name of the embedder that made them; None likewise.

    Raises:
        TypeError: a text or the name is not a str.
        ValueError: there is no text, one is not valid Unicode, or embeddings have another dtype or
            shape or a norm that is not 1.
    """

    def __init__(
        self,
        texts: Sequence[str],
        embeddings: np.ndarray | Tensor | None = None,
        embedder_name: str | None = None,
    ) -> None:
        if isinstance(texts, str):
            raise TypeError("MemoryStore: texts must be a sequence of str, got one str")
        self.texts: Sequence[str] = tuple(texts)
        if not self.texts:
            raise ValueError("MemoryStore: texts is empty")
        for i, text in enumerate(self.texts):
            check_text("MemoryStore", f"texts[{i}]", text)
        vectors = np.empty((len(self.texts), 0), np.float32)
        if embeddings is not None:
            check_text("MemoryStore", "embedder_name", embedder_name)
            matrix = np.asarray(embeddings)
            vectors = checked_vectors(
                "MemoryStore: embeddings",
                matrix,
                count=len(self.texts),
                dim=matrix.shape[-1],
            )
        self.embedder = embedder_name
        self.dim = vectors.shape[1]
        self.embeddings = torch.from_numpy(vectors)
        digests = [text_digest(text) for text in self.texts]
        documents = [(None, digest, 1) for digest in digests]
        rows = zip(digests, map(np.ndarray.tobytes, vectors), strict=True)
        self.identity = identity_of(documents, rows)

    def __len__(self) -> int:
        return len(self.texts)

    def following(self, position: int) -> None:
        """None: the store does not know of documents."""


def _nearest(
    matrix: np.ndarray, queries: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The ``k`` largest inner products of each query, and their rows; on ties the lower row first.

    ``matrix`` is float32 ``[M, dim]``, M at least k; ``queries`` are float32 ``[B, dim]``.
    """
    # Imported late: it takes long, and search by words does not need it.
    with needed_by("searching embeddings"):
        import faiss

    asked = min(k + 1, len(matrix))
    while True:
        scores, rows = faiss.knn(
            queries, matrix, asked, metric=faiss.METRIC_INNER_PRODUCT
        )
        order = np.lexsort((rows, -scores), axis=-1)
        scores = np.take_along_axis(scores, order, axis=-1)
        rows = np.take_along_axis(rows, order, axis=-1)
        # FAISS keeps any of the rows that tie with the last: ask for all of them.
        if asked == len(matrix) or (scores[:, k - 1] > scores[:, -1]).all():
            return scores[:, :k], rows[:, :k]
        asked = min(2 * asked, len(matrix))


def text_digest(text: str) -> bytes:
    """What a text is found by: 16 bytes of BLAKE2."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def identity_of(
    documents: Iterable[tuple[str | None, bytes, int]],
    texts: Iterable[tuple[bytes, bytes | None]],
) -> str:
    """SHA-256 over the contents of a store, in hexadecimal digits.

    Args:
        documents: the source of each, the digest of its text, and how many texts it has.
        texts: the digest of each, and its vector.
    """
    digest = hashlib.sha256()
    for source, document, count in documents:
        digest.update(json.dumps([source, document.hex(), count]).encode())
    for text, vector in texts:
        digest.update(text + (vector or b""))
    return digest.hexdigest()


def check_embedder(
    embedder: Embedder, store: Store, function: str = "TestTimeFinetuner"
) -> None:
    """ValueError if the store's vectors come from another embedder."""
    if store.embedder is None:
        raise ValueError(
            f"{function}: the store has no embeddings: leave the embedder out, or on the "
            "command line take --search lexical"
        )
    ours = f"{embedder.name} of dim {embedder.dim}"
    theirs = f"{store.embedder} of dim {store.dim}"
    if ours != theirs:
        raise ValueError(
            f"{function}: embedder is {ours}, the store's is {theirs}: take that, on the "
            "command line with --embedder"
        )


def checked_vectors(
    what: str, vectors: np.ndarray, *, count: int, dim: int
) -> np.ndarray:
    """The vectors, writable and in C order; ValueError unless they are ``count`` unit vectors."""
    if vectors.dtype != np.float32 or vectors.shape != (count, dim):
        shape = f"{type(vectors).__name__} of {vectors.dtype} {list(vectors.shape)}"
        raise ValueError(
            f"{what} must be an ndarray of float32 [{count}, {dim}], got {shape}"
        )
    norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
    # The comparison is false for NaN.
    bad = np.flatnonzero(~(np.abs(norms - 1) < NORM_TOLERANCE))
    if len(bad):
        raise ValueError(
            f"{what} must be unit vectors, row {bad[0]} has norm {norms[bad[0]]:.4g}"
        )
    # torch refuses negative strides, and warns of read-only arrays.
    return np.require(vectors, requirements=["C", "W"])
