"""Texts on disk, and the search for texts near a query."""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import torch

from hullft_ops._checks import check_text
from hullft_ops._terminal import counted
from hullft_ops.ttft.embedding import Embedder
from hullft_ops.ttft.store.base import Matrix, identity_of
from hullft_ops.ttft.store.format import (
    INFO,
    WORDS,
    Info,
    open_matrix,
    open_texts,
    write_datastore,
)
from hullft_ops.ttft.store.words import Words, digest_of
from hullft_ops.ttft.validation import parse


class Datastore(Matrix):
    """A `Store` in a folder; see `hullft_ops.ttft.store.format`. `build` or `open` makes one.

    Attributes:
        folder: where its files are.
        info: its counts, embedder and identity.
        texts: by position; each access reads one from disk.
        sources: likewise, the document of each text, or None.
        embeddings: mapped from disk without a copy. Writing to them changes this process's view,
            never the file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        file = folder / INFO
        if not file.is_file():
            raise ValueError(f"{folder} is not a datastore: it has no {INFO}")
        self.info = info = parse(Info, file.read_bytes(), str(file))
        self.embedder = info.embedder
        self.dim = info.dim
        self.identity = info.identity
        self.texts: Sequence[str]
        self.sources: Sequence[str | None]
        self.texts, self.sources = open_texts(folder)
        matrix = open_matrix(folder, info.count, info.dim)
        self.embeddings = torch.from_numpy(matrix)

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
            resume: keep the embeddings for the next call if this one is interrupted.

        Raises:
            TypeError, ValueError: there are no texts, a text is not a valid str, or the embedder
                returns anything but unit vectors.
            FileExistsError: as from `check_output`.
        """
        if isinstance(texts, str):
            raise TypeError(
                "Datastore.build: texts must be an iterable of str, got one str"
            )
        rows = _rows(texts, sources)
        write_datastore(path, rows, embedder, resume=resume, describe=_check_count)
        return cls.open(path)

    @classmethod
    def open(cls, path: str | Path) -> "Datastore":
        """Open the datastore in the folder. Maps its files and runs nothing from them.

        That takes the same time however large it is; `verify` reads everything.

        Raises:
            FileNotFoundError: there is no such folder.
            ValueError: it is not a datastore, or a file is missing or damaged.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise FileNotFoundError(f"Datastore.open: {path}: no such folder")
        return cls(folder)

    def verify(self) -> None:
        """Read every text, source and vector and the index of words once. ValueError if one has
        changed since it was written."""
        identity = identity_of(self.texts, self.sources, self.embeddings.numpy())
        words = digest_of(self.folder / WORDS)
        if (identity, words) != (self.identity, self.info.words):
            raise ValueError(f"{self.folder} is damaged: its files have changed")

    @cached_property
    def words(self) -> Words:
        """The index of the texts' words, which is mapped when it is first asked for. ValueError if
        it is damaged."""
        return Words.open(self.folder / WORDS)

    def following(self, position: int) -> int | None:
        """The next position, if its text has the same source; else None."""
        sources = self.sources[position : position + 2]
        is_followed = len(sources) == 2 and None is not sources[0] == sources[1]
        return position + 1 if is_followed else None

    def summary(self) -> list[str]:
        """Lines that describe the datastore."""
        info = self.info
        vectors = f"{info.embedder} of dim {info.dim}" if info.dim else "no vectors"
        line = f"{counted(info.count, 'passage')}, {vectors}"
        return [line] if info.source is None else [line, info.source]


def _rows(
    texts: Iterable[str], sources: Sequence[str] | None
) -> Iterator[dict[str, str | None]]:
    for position, text in enumerate(texts):
        check_text("Datastore.build", f"texts[{position}]", text)
        if sources is None:
            yield {"text": text, "source": None}
        elif position < len(sources):
            yield {"text": text, "source": sources[position]}
        else:
            raise ValueError(
                f"Datastore.build: sources must have one for each text, has {len(sources)}"
            )


def _check_count(count: int) -> None:
    if count == 0:
        raise ValueError("Datastore.build: texts is empty, need at least 1")
