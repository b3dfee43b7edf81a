"""Texts on disk, and the search for texts near a query.

A datastore is a directory:

    manifest.json                 see `Manifest`; names the data directory and its files
    data-<hex>/texts-00000.arrow  texts and metadata, an Arrow stream that HF datasets memory-maps
    data-<hex>/embeddings.f32     float32 [count, dim] in C order, row i embeds text i
    data-<hex>/index-<hex>.faiss  inverted lists, if the datastore is large
    journal.json                  see `Journal`; only while a write is under way

The operators and FAISS read the embeddings as one matrix without a copy. An Arrow column would be
split at every record batch.
"""

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute
import torch

from hullft_ops._extras import needed_by
from hullft_ops.ttft._files import blocks, full_disk_explained, staging_folder
from hullft_ops.ttft._progress import progress_bar
from hullft_ops.ttft.store.base import Found, Queries, checked_search
from hullft_ops.ttft.store.embedding import Embedder, not_unit
from hullft_ops.ttft.store.format import (
    JOURNAL_FILE,
    MANIFEST_FILE,
    Journal,
    Manifest,
    check_file,
    prefixed,
    remove_all_but,
)
from hullft_ops.ttft.store.search import (
    IndexThresholds,
    ListSearch,
    exact_search,
    open_index,
)
from hullft_ops.ttft.store.writer import NOT_OF_TYPE, StoreWriter, array_of, locked

if TYPE_CHECKING:
    import datasets

Scalar = str | int | float | bool | None

_EXACT_ROWS = 20_000
# Twice the tolerance when a vector is written: another processor may round a norm differently.
_NORM_TOLERANCE = 2e-3


@dataclass(eq=False, repr=False)
class Datastore:
    """A `Store` on disk. `build` or `open` makes one.

    Attributes:
        manifest: the contents of the datastore, their sources, and how it is searched.
        rows: the texts and their metadata by position, a `datasets.Dataset`.
        texts: by position; each access reads one from disk.
        embeddings: mapped from disk without a copy. Writing to them changes this process's view,
            never the file.
        lists: the inverted lists of a large datastore; None for exact search.
        positions: int64 ``[len(store)]``, ascending: the positions that `filter` left to search;
            None for all.
    """

    manifest: Manifest
    rows: "datasets.Dataset"
    embeddings: torch.Tensor
    lists: ListSearch | None = None
    positions: torch.Tensor | None = None

    def __post_init__(self) -> None:
        self.embedder, self.dim = self.manifest.embedder, self.manifest.dim
        self.texts: Sequence[str] = self.rows["text"]

    def __len__(self) -> int:
        return self.manifest.count if self.positions is None else len(self.positions)

    @classmethod
    def build(
        cls,
        texts: Iterable[str],
        embedder: Embedder,
        path: str | Path,
        *,
        progress: bool = True,
        overwrite: bool = False,
        thresholds: IndexThresholds | None = None,
    ) -> "Datastore":
        """Write a datastore and open it. Only a batch of texts is in memory.

        The directory appears whole. An exception or a kill leaves ``path`` as it was; a kill also
        leaves a ``.<name>.*.partial`` directory beside it.

        Args:
            texts: in the order of their positions; an empty text is a text.
            path: the directory to create, with missing parents.
            progress: show a progress bar on stderr.
            overwrite: replace the datastore at ``path``, in one atomic step. Foreign files stay.

        Raises:
            TypeError, ValueError: there are no texts, a text is not a valid str, the embedder
                returns anything but unit vectors, or ``path`` to overwrite is not a datastore.
            FileExistsError: ``path`` exists and ``overwrite`` is False.
            OSError: for example, the disk is full.
        """
        if isinstance(texts, str):
            raise TypeError(
                "Datastore.build: texts must be an iterable of str, got one str"
            )
        path = Path(path)
        _replaces(path, overwrite)
        advice = "no datastore was written, nor one replaced"
        with full_disk_explained(path, advice), staging_folder(path) as staging:
            with progress_bar(shown=progress) as bar:
                writer = StoreWriter.begin(staging, embedder, {}, "Datastore.build")
                rows = (
                    {"text": text}
                    for text in bar.track(texts, description="writing texts")
                )
                shard = writer.write_texts(rows, dict)
                if shard is None:
                    raise ValueError("Datastore.build: texts is empty, need at least 1")
                writer.finish(shard, bar, thresholds or IndexThresholds())
            if _replaces(path, overwrite):
                with locked(path):
                    (staging / writer.base.data).rename(path / writer.base.data)
                    # Replacing a manifest, one file, is an atomic step.
                    (staging / MANIFEST_FILE).replace(path / MANIFEST_FILE)
                    (path / JOURNAL_FILE).unlink(missing_ok=True)
                    remove_all_but(path, writer.base)
            else:
                staging.rename(path)
        return cls.open(path)

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = True) -> "Datastore":
        """Open the datastore in the directory. Maps its files and runs nothing from them.

        ``verify`` reads every file once, to compare its checksum and to check that every embedding
        is a unit vector. Sizes and texts are always checked.

        Raises:
            FileNotFoundError: there is no such directory.
            ValueError: it is not a datastore, is unfinished or has another format version; or a
                file is missing, corrupt or contradicts the manifest.
        """
        with needed_by("Datastore.open"), prefixed("Datastore.open"):
            manifest = Manifest.read(Path(path))
            data, index, vectors = (
                Path(path) / manifest.data,
                manifest.index,
                manifest.embeddings,
            )
            for file in manifest.files:
                # Another process may be adding vectors.
                grows = file is vectors
                check_file(data, file, checksum=verify and not grows, longer=grows)
            if verify:
                _check_embeddings(data / vectors.file, manifest)
            import datasets

            shards = [
                _open_texts(data / shard.file, shard.count) for shard in manifest.shards
            ]
            if any(
                shard.data.table.schema != shards[0].data.table.schema
                for shard in shards
            ):
                raise ValueError(f"the columns of the files in {data} differ")
            # Copy on write: PyTorch has no read-only tensors, and the file must stay as it is.
            shape = (manifest.count, manifest.dim)
            matrix = np.memmap(data / vectors.file, np.float32, mode="c", shape=shape)
            lists = (
                open_index(data / index.file.file, matrix, index)
                if index.file
                else None
            )
            rows = datasets.concatenate_datasets(shards)
        return cls(manifest, rows, torch.from_numpy(matrix), lists)

    def filter(self, **metadata: Scalar | Sequence[Scalar]) -> "Datastore":
        """The same datastore, where `search` finds only texts with these values.

        ``store.filter(domain="man")`` or ``store.filter(domain=["man", "docs"], year=2024)``.
        Positions, ``texts``, ``rows`` and ``embeddings`` still refer to the whole datastore.
        ValueError if a column is missing, a value has another type, or no text has these values.
        """
        table = self.rows.data.table
        mask = np.ones(self.manifest.count, bool)
        for name, wanted in metadata.items():
            if name not in table.column_names:
                names = ", ".join(table.column_names[1:]) or "none"
                raise ValueError(f"Datastore.filter: no metadata {name!r}, has {names}")
            column = table.column(name)
            values = (
                [wanted] if isinstance(wanted, Scalar | np.generic) else list(wanted)
            )
            try:
                found = pa.compute.is_in(
                    column, value_set=array_of(column.type, values)
                )
            except NOT_OF_TYPE as error:
                said = f"{name} is {column.type}, got {values[0]!r}: {error}"
                raise ValueError(f"Datastore.filter: {said}") from error
            mask &= found.to_numpy(zero_copy_only=False)
        if self.positions is not None:
            mask &= np.isin(np.arange(len(mask)), self.positions.numpy())
        if not mask.any():
            raise ValueError(f"Datastore.filter: no text has {metadata}")
        positions = torch.from_numpy(np.flatnonzero(mask))
        return Datastore(
            self.manifest, self.rows, self.embeddings, self.lists, positions
        )

    def search(self, queries: Queries, k: int) -> Found:
        """The ``k`` texts nearest to each query; exact unless ``manifest.index`` says otherwise.

        Args:
            queries: float32 ``[B, dim]``, finite, on the CPU like the datastore.
            k: how many texts, at most ``len(store)``.

        Returns:
            ``(scores, ids)``: inner products float32 ``[B, k]`` and positions int64 ``[B, k]``,
            nearest first. Of equal scores, the lower position comes first.

        Raises:
            TypeError: queries are not float32, or k is not an int.
            ValueError: queries are on a GPU, have a wrong shape or a value that is not finite, or k
                is out of range.
        """
        vectors, k = checked_search("Datastore.search", self, queries, k)
        rows = None if self.positions is None else self.positions.numpy()
        # Comparing few texts one by one is faster than picking them out of the lists.
        if self.lists is None or len(self) <= _EXACT_ROWS:
            scores, ids = exact_search(
                self.embeddings.numpy(), vectors.numpy(), k, rows
            )
        else:
            scores, ids = self.lists.search(vectors.numpy(), k, rows)
        return torch.from_numpy(scores), torch.from_numpy(ids)


def _replaces(path: Path, overwrite: bool) -> bool:
    """Whether a datastore is there, which may be replaced. An error if anything else is."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return False
    if not overwrite:
        raise FileExistsError(
            f"Datastore.build: {path} exists; overwrite=True replaces it"
        )
    with prefixed(f"Datastore.build: will not overwrite {path}"):
        Journal.read(path)
        Manifest.values(path)
    return True


def _open_texts(file: Path, count: int) -> "datasets.Dataset":
    """The texts in an Arrow file, ``count`` of them, and their metadata."""
    import datasets

    try:
        opened = datasets.Dataset.from_file(str(file))
        table: pa.Table = opened.data.table
        # Arrow trusts the offsets in a file: one out of range would read outside of it.
        table.validate(full=True)
    # The libraries do not document what they raise for foreign bytes.
    except Exception as error:
        raise ValueError(f"{file} is missing or corrupt: {error}") from error
    first = table.schema.field(0) if table.schema.names else None
    if first != pa.field("text", pa.string()) or len(table) != count:
        schema = table.schema.to_string(show_schema_metadata=False)
        raise ValueError(
            f"{file} must hold {count} texts, got {len(table)} rows of {schema}"
        )
    if table.column(0).null_count:
        row = pa.compute.index(table.column(0).is_null(), True).as_py()
        raise ValueError(f"{file} must hold a text in each row, row {row} is null")
    return opened


def _check_embeddings(file: Path, manifest: Manifest) -> None:
    """Compare the checksum and the norms in one pass. Reading the map would fill memory."""
    crc32 = first = 0
    wrong = None
    for block in blocks(file, manifest.embeddings.bytes, 4 * manifest.dim):
        crc32 = zlib.crc32(block, crc32)
        rows = np.frombuffer(block, np.float32).reshape(-1, manifest.dim)
        found = not_unit(rows, _NORM_TOLERANCE)
        if found and not wrong:
            wrong = f"row {first + found[0]} has norm {found[1]}"
        first += len(rows)
    if crc32 != manifest.embeddings.crc32:
        raise ValueError(f"{file} is missing or corrupt: its checksum is wrong")
    if wrong:
        raise ValueError(f"{file} must hold unit vectors, {wrong}")
