"""Texts on disk and the search for those near a query.

A datastore is a directory:

    manifest.json                 see `Manifest`; names the data directory
    data-<hex>/texts.arrow        the texts, an Arrow stream that HF datasets memory-maps
    data-<hex>/embeddings.npy     float32 [count, dim], row i embeds text i

The embeddings are one NumPy file, not an Arrow column: Arrow splits a column at every record
batch, and both the operators and FAISS need one contiguous matrix to read without a copy. It is
also all that a flat FAISS index holds, so FAISS searches the mapped file and no index is stored,
which could fall out of step, double the size, or have to be trusted.
"""

import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from uuid import uuid4

import datasets
import faiss
import numpy as np
import torch

from hullft_ops._checks import check_integer
from hullft_ops.ttft.embedding import Embedder
from hullft_ops.ttft.manifest import MANIFEST_FILE, Manifest
from hullft_ops.ttft.store_writer import EMBEDDINGS_FILE, TEXT_SCHEMA, TEXTS_FILE, write_store


class Datastore:
    """Texts with their embeddings, searched by inner product. Made by `build` or `open`.

    Attributes:
        manifest: the embedder's name and dimension, and the number of texts.
        texts: the texts by position; each is read from disk when asked for.
        embeddings: float32 ``[len(store), dim]``, row i of unit norm for ``texts[i]``. Mapped from
            disk, copied nowhere; writing to it changes this process's view, never the file.
    """

    def __init__(self, manifest: Manifest, texts: Sequence[str], embeddings: torch.Tensor) -> None:
        self.manifest = manifest
        self.texts = texts
        self.embeddings = embeddings

    def __len__(self) -> int:
        return self.manifest.count

    @classmethod
    def build(
        cls,
        texts: Iterable[str],
        embedder: Embedder,
        path: str | Path,
        *,
        progress: bool = True,
        overwrite: bool = False,
    ) -> "Datastore":
        """Write a datastore and open it. Texts are streamed: only a batch is in memory.

        The directory is prepared beside ``path`` and appears whole: an exception or a kill leaves
        ``path`` as it was (a kill leaves a ``.<name>.*.partial`` directory beside it).

        Args:
            texts: the texts, in the order of their positions; an empty text is a text.
            embedder: gives the unit vectors; its name goes into the manifest.
            path: the directory to make; missing parents are made.
            progress: show a progress bar on stderr.
            overwrite: replace the datastore at ``path``, in one atomic step. A directory that is
                not a datastore is never replaced.

        Raises:
            TypeError: an item of ``texts`` is not a str, or the embedder gives no float32.
            ValueError: no texts, a text that is not valid Unicode, vectors that are not unit
                vectors of ``embedder.dim``, or ``overwrite`` of what is not a datastore.
            FileExistsError: ``path`` exists and is not to be overwritten.
        """
        if isinstance(texts, str):
            raise TypeError("Datastore.build: texts must be an iterable of str, got one str")
        path = Path(path)
        _check_destination(path, overwrite)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f".{path.name}.", suffix=".partial", dir=path.parent
        ) as staging:
            # TemporaryDirectory's own is private to the user; one inside follows the umask.
            staged = Path(staging) / "store"
            write_store(texts, embedder, staged, data=f"data-{uuid4().hex}", progress=progress)
            _put_in_place(staged, path, overwrite)
        return cls.open(path)

    @classmethod
    def open(cls, path: str | Path) -> "Datastore":
        """Open the datastore at ``path``: maps its files, runs nothing that they contain.

        Raises:
            FileNotFoundError: no such directory.
            ValueError: not a datastore, one of another format version, or one whose files are
                missing, corrupt, or at odds with the manifest.
        """
        path = Path(path)
        try:
            manifest = Manifest.read(path)
        except (FileNotFoundError, ValueError) as error:
            raise type(error)(f"Datastore.open: {error}") from error
        data = path / manifest.data
        texts = _open_texts(data / TEXTS_FILE, manifest)
        return cls(manifest, texts, _open_embeddings(data / EMBEDDINGS_FILE, manifest))

    def search(
        self, queries: np.ndarray | torch.Tensor, k: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The ``k`` nearest texts of each query, by FAISS, exactly.

        Args:
            queries: float32 ``[B, dim]``, finite.
            k: how many; at most ``len(store)``.

        Returns:
            ``(scores, ids)``: inner products float32 ``[B, k]`` and positions int64 ``[B, k]``,
            nearest first, the lower position first of equal scores.

        Raises:
            TypeError: queries are not float32, or k is not an int.
            ValueError: a wrong shape, a value that is not finite, or k out of range.
        """
        vectors = self._checked_queries(torch.as_tensor(queries))
        check_integer("Datastore.search", "k", k, 1)
        if k > len(self):
            raise ValueError(f"Datastore.search: k is {k}, the datastore has {len(self)} texts")
        scores, ids = faiss.knn(
            vectors.numpy(), self.embeddings.numpy(), k, metric=faiss.METRIC_INNER_PRODUCT
        )
        # FAISS leaves equal scores in the order of its heap.
        order = np.lexsort((ids, -scores), axis=-1)
        return (
            torch.from_numpy(np.take_along_axis(scores, order, axis=-1)),
            torch.from_numpy(np.take_along_axis(ids, order, axis=-1)),
        )

    def _checked_queries(self, queries: torch.Tensor) -> torch.Tensor:
        if queries.dtype != torch.float32:
            raise TypeError(f"Datastore.search: queries must be float32, got {queries.dtype}")
        if queries.ndim != 2 or queries.shape[1] != self.manifest.dim:
            raise ValueError(
                f"Datastore.search: queries must have shape [B, {self.manifest.dim}], "
                f"got {list(queries.shape)}"
            )
        if not queries.isfinite().all():
            raise ValueError("Datastore.search: queries must be finite")
        return queries.detach().cpu().contiguous()


def _check_destination(path: Path, overwrite: bool) -> None:
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not overwrite:
        raise FileExistsError(f"Datastore.build: {path} exists; overwrite=True replaces it")
    try:
        Manifest.read(path)
    except ValueError as error:
        raise ValueError(f"Datastore.build: will not overwrite {path}: {error}") from error


def _put_in_place(staged: Path, path: Path, overwrite: bool) -> None:
    """Move a finished directory to ``path``.

    No file system swaps two directories portably, so an existing datastore gets the new data
    directory beside the old one, and replacing its manifest, one file, is the atomic step.
    """
    _check_destination(path, overwrite)
    if not (path / MANIFEST_FILE).exists():
        staged.rename(path)
        return
    old, new = Manifest.read(path), Manifest.read(staged)
    (staged / new.data).rename(path / new.data)
    (staged / MANIFEST_FILE).replace(path / MANIFEST_FILE)
    shutil.rmtree(path / old.data, ignore_errors=True)


def _open_texts(file: Path, manifest: Manifest) -> Sequence[str]:
    try:
        dataset = datasets.Dataset.from_file(str(file))
        table = dataset.data.table
        # Arrow trusts the offsets in a file: one out of range would read outside of it.
        table.validate(full=True)
    # What the libraries raise for foreign bytes is not documented.
    except Exception as error:
        raise ValueError(f"Datastore.open: {file} is missing or corrupt: {error}") from error
    if not table.schema.equals(TEXT_SCHEMA) or len(table) != manifest.count:
        raise ValueError(
            f"Datastore.open: {file} must hold {manifest.count} texts, got {len(table)} rows of "
            f"{table.schema.to_string(show_schema_metadata=False)}"
        )
    texts: Sequence[str] = dataset["text"]
    return texts


def _open_embeddings(file: Path, manifest: Manifest) -> torch.Tensor:
    try:
        # Copy on write: PyTorch has no read-only tensors, and the file must stay as it is.
        matrix = np.lib.format.open_memmap(file, mode="c")
    except Exception as error:
        raise ValueError(f"Datastore.open: {file} is missing or corrupt: {error}") from error
    wanted = (manifest.count, manifest.dim)
    if matrix.dtype != np.float32 or matrix.shape != wanted or not matrix.flags.c_contiguous:
        raise ValueError(
            f"Datastore.open: {file} must be float32 {list(wanted)} in C order, "
            f"got {matrix.dtype} {list(matrix.shape)}"
        )
    return torch.from_numpy(matrix)
