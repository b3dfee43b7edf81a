"""Texts on disk, and the search for texts near a query."""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hullft_ops._checks import check_text
from hullft_ops._terminal import counted
from hullft_ops.ttft.embedding import Embedder
from hullft_ops.ttft.files import new_folder
from hullft_ops.ttft.store.base import checked_vectors, exact_search, identity_of
from hullft_ops.ttft.store.format import (
    FILES,
    INFO,
    SKIPPED,
    SOURCE,
    WORDS,
    Info,
    Rows,
    Source,
    embed_texts,
    finish,
    open_matrix,
    read_model,
    write_texts,
)
from hullft_ops.ttft.store.words import Words


class Datastore:
    """A `Store` in a folder; see `hullft_ops.ttft.store.format`. `build` or `open` makes one.

    Attributes:
        folder: where its files are.
        info: its counts, embedder and identity.
        source: where the texts come from; None if a program gave them.
        rows: by position the text, its source and metadata, a dictionary of strings; each access
            reads one from disk.
        texts: by position, likewise.
        embeddings: mapped from disk without a copy. Writing to them changes this process's view,
            never the file.
    """

    def __init__(
        self,
        folder: Path,
        info: Info,
        embeddings: np.ndarray,
        source: Source | None = None,
    ) -> None:
        self.folder = folder
        self.info = info
        self.source = source
        self.embedder = info.embedder
        self.dim = info.dim
        self.identity = info.identity
        self.rows: Sequence[dict[str, str | None]] = Rows(folder)
        self.texts: Sequence[str] = Rows(folder, "text")
        self._sources: Sequence[str | None] = Rows(folder, "source")
        self.embeddings = torch.from_numpy(embeddings)

    def __len__(self) -> int:
        return self.info.count

    @classmethod
    def build(
        cls,
        texts: Iterable[str],
        embedder: Embedder | None,
        path: str | Path,
        *,
        sources: Sequence[str] | None = None,
        resume: bool = False,
    ) -> "Datastore":
        """Write a datastore and open it. Only a batch of texts is in memory.

        The folder appears whole: an exception or a kill leaves ``path`` as it was.

        Args:
            texts: in the order of their positions; an empty text is a text.
            embedder: what makes their vectors; None for search by words alone.
            path: the folder to create, with missing parents.
            sources: the document of each text; texts in a row that share it follow one another.
            resume: keep the embeddings for the next call if this one is interrupted. That call must
                have the same texts.

        Raises:
            TypeError, ValueError: there are no texts, a text is not a valid str, or the embedder
                returns anything but unit vectors.
            FileExistsError: as from `check_output`.
        """
        if isinstance(texts, str):
            raise TypeError(
                "Datastore.build: texts must be an iterable of str, got one str"
            )
        with new_folder(path, FILES, resume=resume) as folder:
            if write_texts(folder, _rows(texts, sources)) == 0:
                raise ValueError("Datastore.build: texts is empty, need at least 1")
            if embedder is not None:
                embed_texts(folder, embedder)
            finish(folder, embedder)
        return cls.open(path)

    @classmethod
    def open(cls, path: str | Path) -> "Datastore":
        """Open the datastore in the folder. Maps its files and runs nothing from them.

        That takes the same time however large it is: it compares counts and sizes, and `verify`
        reads everything.

        Raises:
            FileNotFoundError: there is no such folder.
            ValueError: it is not a datastore, or a file is missing or contradicts another.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise FileNotFoundError(f"Datastore.open: {path}: no such folder")
        info = read_model(Info, folder / INFO)
        matrix = open_matrix(folder, info.count, info.dim)
        source = None
        if (folder / SOURCE).exists():
            source = read_model(Source, folder / SOURCE)
        store = cls(folder, info, matrix, source)
        if len(store.texts) != info.count:
            raise ValueError(
                f"{folder} must have {info.count} texts, has {len(store.texts)}"
            )
        return store

    def verify(self) -> None:
        """Read every row, every vector and the index of words once.

        Raises:
            ValueError: an embedding is no unit vector, or a text, a source, metadata, a vector or
                the index has changed since it was written.
        """
        count, dim = self.info.count, self.info.dim
        matrix = self.embeddings.numpy()
        what = f"the vectors in {self.folder}"
        if dim:
            checked_vectors(what, matrix, count=count, dim=dim)
        if identity_of(self.rows, matrix) != self.identity:
            raise ValueError(
                f"{self.folder} is damaged: its texts, sources or vectors have changed"
            )
        Words.open(self.folder / WORDS, self.info.words)

    @cached_property
    def words(self) -> Words:
        """The index of the texts' words, which is mapped when it is first asked for. ValueError if
        it is damaged."""
        return Words.open(self.folder / WORDS, self.info.words)

    def vectors(self, positions: Tensor) -> Tensor:
        """As `Store.vectors`."""
        return self.embeddings[positions]

    def search(self, queries: np.ndarray | Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The ``k`` texts nearest to each query. The search is exact.

        Args:
            queries: float32 ``[B, dim]``, finite, on the CPU like the datastore.
            k: how many texts, at most ``len(store)``.

        Returns:
            ``(scores, positions)``: inner products float32 ``[B, k]`` and int64 ``[B, k]``, nearest
            first. Of equal scores, the lower position comes first.

        Raises:
            TypeError: queries are not float32, or k is not an int.
            ValueError: queries are on a GPU, have a wrong shape or a value that is not finite, or k
                is out of range.
        """
        return exact_search("Datastore.search", self.embeddings, queries, k)

    def following(self, position: int) -> int | None:
        """The next position, if its text has the same source; else None."""
        sources = self._sources[position : position + 2]
        is_followed = len(sources) == 2 and None is not sources[0] == sources[1]
        return position + 1 if is_followed else None

    def summary(self) -> list[str]:
        """Lines that describe the datastore."""
        info = self.info
        vectors = f"{info.embedder} of dim {info.dim}" if info.dim else "no vectors"
        lines = [f"{counted(info.count, 'passage')}, {vectors}"]
        if self.source:
            corpus = self.source.settings.get("corpus")
            lines.append(f"{corpus}: {self.source.left_out()}")
            if self.source.skipped > len(self.source.skipped_named):
                lines.append(f"all that was skipped: {self.folder / SKIPPED}")
        return lines


def _rows(
    texts: Iterable[str], sources: Sequence[str] | None
) -> Iterator[dict[str, str]]:
    for position, text in enumerate(texts):
        check_text("Datastore.build", f"texts[{position}]", text)
        if sources is None:
            yield {"text": text}
        elif position < len(sources):
            yield {"text": text, "source": sources[position]}
        else:
            raise ValueError(
                f"Datastore.build: sources must have one for each text, has {len(sources)}"
            )
