"""Turning a corpus into a datastore: it streams, resumes after a kill, and appends."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from hullft_ops._checks import check_integer
from hullft_ops.ttft._files import full_disk_explained
from hullft_ops.ttft._progress import progress_bar
from hullft_ops.ttft.store.datastore import Datastore
from hullft_ops.ttft.store.embedding import Embedder, EncodeBatches, check_embedder
from hullft_ops.ttft.store.format import (
    MANIFEST_FILE,
    OWN_PARTIALS,
    Journal,
    Manifest,
    own_entries,
    refuse_link,
)
from hullft_ops.ttft.store.search import IndexThresholds
from hullft_ops.ttft.store.sources import Counts, Record, Source, SourceError
from hullft_ops.ttft.store.writer import StoreWriter, locked

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FUNCTION = "index_corpus"
MODES = ("new", "append", "resume", "restart")


@dataclass(frozen=True)
class Cutting:
    """How to cut a record into texts.

    Attributes:
        tokenizer: counts the tokens; required with ``chunk_tokens``.
        chunk_tokens: length of a text in tokens, at least 1; None for whole records.
        overlap: tokens that a text shares with the one before it, fewer than ``chunk_tokens``.
        min_chars: leave out texts with fewer characters, not counting blanks at both ends.

    Raises:
        TypeError: a size is not an int.
        ValueError: a size is out of range, ``chunk_tokens`` comes without a fast tokenizer, or
            ``overlap`` without ``chunk_tokens``.
    """

    tokenizer: "PreTrainedTokenizerBase | None" = None
    chunk_tokens: int | None = None
    overlap: int = 0
    min_chars: int = 16

    def __post_init__(self) -> None:
        sizes = {"min_chars": 0, "overlap": 0}
        if self.chunk_tokens is not None:
            sizes["chunk_tokens"] = 1
        for name, least in sizes.items():
            # JSON does not know NumPy's integers, so convert them to Python's.
            whole = check_integer("Cutting", name, getattr(self, name), least)
            object.__setattr__(self, name, whole)
        if self.chunk_tokens is None and self.overlap:
            raise ValueError(f"Cutting: overlap {self.overlap} needs chunk_tokens")
        if self.chunk_tokens is not None and self.tokenizer is None:
            raise ValueError("Cutting: chunk_tokens needs a tokenizer")
        self.cut()

    def cut(self) -> Callable[[str], Iterator[str]] | None:
        """A function that cuts a record's text, or None for whole records."""
        if self.tokenizer is None or self.chunk_tokens is None:
            return None
        return token_chunks(self.tokenizer, self.chunk_tokens, self.overlap)


def index_corpus(
    source: Source,
    path: str | Path,
    embedder: Embedder,
    *,
    cutting: Cutting | None = None,
    thresholds: IndexThresholds | None = None,
    mode: str = "new",
    console: Console | None = None,
    encode: EncodeBatches | None = None,
) -> Datastore:
    """Write a corpus into the datastore at ``path``, and open it.

    Texts go to the disk first and are embedded from there. Whatever the progress bar counts is on
    the disk. A killed process loses none of it, and ``mode="resume"`` makes the same datastore as
    an uninterrupted run. Until all is done, readers see the datastore as it was.

    Args:
        source: what to read. Exact repetitions are left out, even of texts in the datastore.
        path: the datastore's directory.
        embedder: makes the unit vectors.
        cutting: how to cut records into texts; None keeps records whole.
        thresholds: which search index to build.
        mode: "new": ``path`` must be free. "append": add to a finished datastore. "resume": finish
            an interrupted write of the same source. "restart": roll an interrupted write back and
            write again. Without an interrupted write, "resume" and "restart" begin a new one.
        console: shows the progress; None shows none.
        encode: embeds batches elsewhere, for example
            `hullft_ops.ttft.scale.embedding.ray_embedding`; None embeds in this process.

    Raises:
        FileNotFoundError: there is no such source, or no datastore to append to.
        FileExistsError: ``mode`` is "new" and ``path`` is not free, or "restart" and a finished
            datastore is there.
        ValueError: the datastore has another embedder or other settings, a file is corrupt, or
            another process is writing the datastore.
        SourceError: the source cannot be read, or nothing in it fits.
        OSError: for example, the disk is full; "resume" goes on from there.
    """
    if mode not in MODES:
        raise ValueError(f"{_FUNCTION}: mode must be one of {', '.join(MODES)}, got {mode!r}")
    path, cutting = Path(path), cutting or Cutting()
    settings = _settings(source, cutting)
    if not path.is_dir():
        # Refuse before creating a directory.
        _check_state(path, mode, settings)
        path.mkdir(parents=True, exist_ok=True)
    advice = "the datastore is as its readers saw it before: free some space, then resume"
    with locked(path), full_disk_explained(path, advice):
        # Before the lock, the journal could have belonged to a write under way.
        _check_state(path, mode, settings)
        if mode == "resume" and Journal.read(path):
            writer = StoreWriter.resume(path, embedder, settings, _FUNCTION)
        elif mode == "resume" and (path / MANIFEST_FILE).exists():
            store = Datastore.open(path)
            check_embedder(_FUNCTION, embedder, store.manifest)
            return store
        else:
            writer = StoreWriter.begin(path, embedder, settings, _FUNCTION)
        with progress_bar(console or Console(quiet=True), shown=console is not None) as bar:
            if not writer.finished:
                _write_texts(writer, source, cutting, bar)
                writer.embed(bar, encode)
            writer.finish(thresholds or IndexThresholds())
    return Datastore.open(path)


def _write_texts(writer: StoreWriter, source: Source, cutting: Cutting, bar: Progress) -> None:
    counts, left, seen = Counts(), Left(), SeenTexts()
    if writer.base.count and writer.journal.shard is None:
        for text in Datastore.open(writer.directory).texts:
            seen.add(text)
    records = source.records(counts)
    rows = passage_rows(records, cutting.cut(), cutting.min_chars, seen, left)

    def report() -> dict[str, Any]:
        return {
            "settings": writer.journal.settings,
            "records": counts.records,
            "malformed": counts.malformed,
            "malformed_named": counts.named,
            "binary": counts.binary,
            "binary_named": counts.binary_named,
            "near_empty": left.near_empty,
            "repeated": left.repeated,
        }

    try:
        count = writer.write_texts(bar.track(rows, description="writing texts"), report)
    except (ValueError, OSError):
        # Texts that cannot be written now cannot be written by a resumed run either.
        writer.abandon()
        raise
    if count == 0:
        writer.abandon()
        count = writer.base.count
        known = f" or among the {count} in the datastore" if count else ""
        raise SourceError(
            f"{source.name}: nothing to index: of {counts.records} records {counts.malformed} are "
            f"malformed, {left.near_empty} texts have fewer than {cutting.min_chars} characters, "
            f"{left.repeated} are repeated{known}"
            + "".join(f"; {name}" for name in counts.named)
            + (f"; {counts.binary} files are not text" if counts.binary else "")
        )


def _check_state(path: Path, mode: str, settings: dict[str, Any]) -> None:
    journal = Journal.read(path)
    refuse_link(path / MANIFEST_FILE)
    finished = (path / MANIFEST_FILE).exists()
    if journal and mode in ("new", "append"):
        raise ValueError(
            f"{_FUNCTION}: a write into {path} was interrupted, {journal.embedded} texts into its "
            "embedding: resume finishes it, restart rolls it back and begins anew"
        )
    if not journal and not finished:
        if path.exists() and set(path.iterdir()) - set(own_entries(path, OWN_PARTIALS)):
            raise FileExistsError(f"{_FUNCTION}: {path} is not empty and not a datastore")
        if mode == "append":
            raise FileNotFoundError(f"{_FUNCTION}: no datastore at {path} to append to")
    elif not journal and mode in ("new", "restart"):
        raise FileExistsError(f"{_FUNCTION}: {path} exists: append adds to it")
    elif not journal and mode == "resume":
        done = Manifest.read(path).sources
        if all(source.get("settings") != settings for source in done):
            raise ValueError(
                f"{_FUNCTION}: no interrupted write in {path}, and the datastore there was made "
                "from another source or with other settings: append adds to it"
            )


def _settings(source: Source, cutting: Cutting) -> dict[str, Any]:
    """The settings that decide the texts, as JSON stores them."""
    tokenizer = cutting.tokenizer
    # Absent where they are empty, so that an older version's interrupted write can be resumed.
    globs = {name: list(getattr(source, name)) for name in ("include", "exclude")}
    return {name: given for name, given in globs.items() if given} | {
        "source": source.name,
        "text_column": source.text_column,
        "metadata": list(source.metadata),
        "max_bad_share": source.max_bad_share,
        "tokenizer": tokenizer.name_or_path if tokenizer and cutting.chunk_tokens else None,
        "chunk_tokens": cutting.chunk_tokens,
        "overlap": cutting.overlap,
        "min_chars": cutting.min_chars,
    }


Cut = Callable[[str], Iterable[str]]
_DIGEST_BYTES = 16
_RECENT = 1 << 14


@dataclass
class Left:
    """How many texts were left out: near-empty ones and exact repetitions."""

    near_empty: int = 0
    repeated: int = 0


class SeenTexts:
    """Remembers texts by a 128-bit digest: 16 bytes for each text.

    Recent digests are in a set, older ones in sorted arrays. Each array is at least twice as long
    as the next, so there are few arrays and a digest is seldom merged.
    """

    def __init__(self) -> None:
        self._recent: set[bytes] = set()
        self._sorted: list[np.ndarray] = []

    def add(self, text: str) -> bool:
        """Remember ``text``. True if it was there already."""
        digest = hashlib.blake2b(text.encode(), digest_size=_DIGEST_BYTES).digest()
        if digest in self._recent or any(_contains(array, digest) for array in self._sorted):
            return True
        self._recent.add(digest)
        if len(self._recent) == _RECENT:
            self._merge()
        return False

    def _merge(self) -> None:
        new = np.sort(np.array(list(self._recent), dtype=f"S{_DIGEST_BYTES}"))
        self._recent.clear()
        while self._sorted and len(self._sorted[-1]) < 2 * len(new):
            new = np.sort(np.concatenate([self._sorted.pop(), new]), kind="stable")
        self._sorted.append(new)


def passage_rows(
    records: Iterable[Record], cut: Cut | None, min_chars: int, seen: SeenTexts, left: Left
) -> Iterator[Record]:
    """The records' passages that are new to ``seen``, with the metadata of their records.

    ``left`` counts those that are left out.
    """
    for record in records:
        # Cutting an empty text yields nothing, but it must be counted.
        for text in cut(record["text"]) if cut and record["text"] else (record["text"],):
            if len(text.strip()) < min_chars:
                left.near_empty += 1
            elif seen.add(text):
                left.repeated += 1
            else:
                yield {**record, "text": text}


def _contains(array: np.ndarray, digest: bytes) -> bool:
    place = int(np.searchsorted(array, np.bytes_(digest)))
    # NumPy drops the zeros at the end of an element.
    return place < len(array) and bytes(array[place]) == digest.rstrip(b"\0")


# Characters to tokenize at a time, so that a text of any length takes bounded memory.
_WINDOW = 1 << 18


def token_chunks(
    tokenizer: "PreTrainedTokenizerBase", max_tokens: int, overlap: int = 0
) -> Callable[[str], Iterator[str]]:
    """A function that cuts a text into verbatim pieces of ``max_tokens`` tokens.

    Special tokens are not counted. The last piece may be shorter. Each piece begins ``overlap``
    tokens before the end of the one before. Without overlap the pieces join up to the text again.
    """
    if max_tokens < 1:
        raise ValueError(f"token_chunks: max_tokens must be at least 1, got {max_tokens}")
    if not 0 <= overlap < max_tokens:
        raise ValueError(
            f"token_chunks: overlap must be at least 0 and below max_tokens, got {overlap} "
            f"of {max_tokens}"
        )
    if not tokenizer.is_fast:
        raise ValueError("token_chunks: tokenizer must be a fast one, which knows characters")

    def cut(text: str) -> Iterator[str]:
        start = 0
        while start < len(text):
            window = text[start : start + _WINDOW]
            # Tokenizers warn of texts beyond a model's context; here the texts are cut to fit.
            encoding = tokenizer(
                window,
                add_special_tokens=False,
                return_offsets_mapping=True,
                truncation=False,
                verbose=False,
            )
            starts = [begin for begin, _ in encoding["offset_mapping"]]
            whole = start + len(window) == len(text)
            for first in range(0, max(len(starts), 1), max_tokens - overlap):
                end = first + max_tokens
                begin = starts[first] if first else 0
                # The next window cuts the last piece of this one again, with the text after it.
                if end >= len(starts) and (whole or begin == 0):
                    yield window[begin:]
                    start += len(window)
                    break
                if end >= len(starts):
                    start += begin
                    break
                if starts[end] > begin:
                    yield window[begin : starts[end]]

    return cut
