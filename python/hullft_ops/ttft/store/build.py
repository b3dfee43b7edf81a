"""Turning a corpus into a datastore: it streams, resumes after a kill, and appends."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
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
_DIGEST_BYTES = 16
_RECENT = 1 << 14
# Characters to tokenize at a time, so that a text of any length takes bounded memory.
_WINDOW = 1 << 18


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
        if self.chunk_tokens is None:
            if self.overlap:
                raise ValueError(f"Cutting: overlap {self.overlap} needs chunk_tokens")
        elif self.tokenizer is None or not self.tokenizer.is_fast:
            raise ValueError(
                "Cutting: chunk_tokens needs a fast tokenizer, which maps tokens to characters"
            )
        elif self.overlap >= self.chunk_tokens:
            raise ValueError(
                f"Cutting: overlap must be below chunk_tokens, got {self.overlap} of "
                f"{self.chunk_tokens}"
            )

    def texts(self, text: str) -> Iterable[str]:
        """The texts of a record."""
        # Cutting an empty text yields nothing, but it must be counted.
        if self.tokenizer is None or self.chunk_tokens is None or not text:
            return (text,)
        return token_chunks(text, self.tokenizer, self.chunk_tokens, self.overlap)


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
        OSError: for example, the disk is full; "resume" continues from there.
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
    counts, seen, known = Counts(), SeenTexts(), writer.base.count
    if known and writer.journal.shard is None:
        for text in Datastore.open(writer.directory).texts:
            seen.add(text)
    rows = bar.track(_passages(source, cutting, seen, counts), description="writing texts")
    try:
        report = {"settings": writer.journal.settings}
        if writer.write_texts(rows, lambda: report | asdict(counts)) == 0:
            raise SourceError(
                f"{source.name}: nothing to index: of {counts.records} records {counts.malformed} "
                f"are malformed, {counts.near_empty} texts have fewer than {cutting.min_chars} "
                f"characters, {counts.repeated} are repeated"
                + (f" or among the {known} in the datastore" if known else "")
                + "".join(f"; {name}" for name in counts.malformed_named)
                + (f"; {counts.binary} files are not text" if counts.binary else "")
            )
    except (ValueError, OSError):
        # Texts that cannot be written now cannot be written by a resumed run either.
        writer.abandon()
        raise


def _passages(
    source: Source, cutting: Cutting, seen: "SeenTexts", counts: Counts
) -> Iterator[Record]:
    """The passages that are new to ``seen``, with the metadata of their records."""
    for record in source.records(counts):
        for text in cutting.texts(record["text"]):
            if len(text.strip()) < cutting.min_chars:
                counts.near_empty += 1
            elif seen.add(text):
                counts.repeated += 1
            else:
                yield {**record, "text": text}


def _check_state(path: Path, mode: str, settings: dict[str, Any]) -> None:
    """Refuse a mode that does not fit what is at ``path``."""
    journal = Journal.read(path)
    refuse_link(path / MANIFEST_FILE)
    if journal:
        if mode in ("new", "append"):
            raise ValueError(
                f"{_FUNCTION}: a write into {path} was interrupted, {journal.embedded} texts into "
                "its embedding: resume finishes it, restart rolls it back and begins anew"
            )
    elif not (path / MANIFEST_FILE).exists():
        if path.exists() and set(path.iterdir()) - set(own_entries(path, OWN_PARTIALS)):
            raise FileExistsError(f"{_FUNCTION}: {path} is not empty and not a datastore")
        if mode == "append":
            raise FileNotFoundError(f"{_FUNCTION}: no datastore at {path} to append to")
    elif mode in ("new", "restart"):
        raise FileExistsError(f"{_FUNCTION}: {path} exists: append adds to it")
    elif mode == "resume":
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


def text_digest(text: str) -> bytes:
    """A text's 128-bit digest."""
    return hashlib.blake2b(text.encode(), digest_size=_DIGEST_BYTES).digest()


class SeenTexts:
    """Remembers texts by their digests: recent ones in a set, older ones in sorted arrays.

    Each array is at least twice as long as the next, so they are few, and seldom merged.
    """

    def __init__(self) -> None:
        self._recent: set[bytes] = set()
        self._sorted: list[np.ndarray] = []

    def add(self, text: str) -> bool:
        """Remember ``text``. True if it was there already."""
        digest = text_digest(text)
        if digest in self._recent or any(_contains(array, digest) for array in self._sorted):
            return True
        self._recent.add(digest)
        if len(self._recent) == _RECENT:
            new = np.sort(np.array(list(self._recent), dtype=f"S{_DIGEST_BYTES}"))
            self._recent.clear()
            while self._sorted and len(self._sorted[-1]) < 2 * len(new):
                new = np.sort(np.concatenate([self._sorted.pop(), new]), kind="stable")
            self._sorted.append(new)
        return False


def _contains(array: np.ndarray, digest: bytes) -> bool:
    place = int(np.searchsorted(array, np.bytes_(digest)))
    # NumPy drops the zeros at the end of an element.
    return place < len(array) and bytes(array[place]) == digest.rstrip(b"\0")


def token_chunks(
    text: str, tokenizer: "PreTrainedTokenizerBase", max_tokens: int, overlap: int = 0
) -> Iterator[str]:
    """Cut a text into verbatim pieces of ``max_tokens`` tokens, not counting special ones.

    The last piece may be shorter. Each piece begins ``overlap`` tokens before the end of the one
    before. Without overlap the pieces join up to the text again.
    """
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
            if end >= len(starts):
                # The next window cuts the last piece of this one again, with the text after it.
                if whole or begin == 0:
                    yield window[begin:]
                    begin = len(window)
                start += begin
                break
            if starts[end] > begin:
                yield window[begin : starts[end]]
