"""Turning a corpus into a datastore: it streams, resumes after a kill, appends, and reuses."""

import hashlib
import json
import sqlite3
from collections.abc import Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from hullft_ops._checks import check_integer
from hullft_ops._terminal import show
from hullft_ops.ttft._files import full_disk_explained
from hullft_ops.ttft._progress import progress_bar
from hullft_ops.ttft.store.datastore import Datastore
from hullft_ops.ttft.store.embedding import (
    Embedder,
    EncodeBatches,
    check_embedder,
    encode_checked,
)
from hullft_ops.ttft.store.format import (
    JOURNAL_FILE,
    MANIFEST_FILE,
    OWN_PARTIALS,
    Counts,
    DataFile,
    Journal,
    Manifest,
    own_entries,
    refuse_link,
    remove_all_but,
)
from hullft_ops.ttft.store.search import IndexThresholds
from hullft_ops.ttft.store.sources import Record, Source, SourceError
from hullft_ops.ttft.store.writer import StoreWriter, locked

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FUNCTION = "index_corpus"
MODES = ("new", "append", "resume", "restart")
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
        for name, least in (("min_chars", 0), ("overlap", 0), ("chunk_tokens", 1)):
            # JSON does not know NumPy's integers, so convert them to Python's.
            if (size := getattr(self, name)) is not None:
                object.__setattr__(
                    self, name, check_integer("Cutting", name, size, least)
                )
        if self.chunk_tokens is None:
            if self.overlap:
                raise ValueError(f"Cutting: overlap {self.overlap} needs chunk_tokens")
        elif self.tokenizer is None or not self.tokenizer.is_fast:
            raise ValueError("Cutting: chunk_tokens needs a fast tokenizer")
        elif self.overlap >= self.chunk_tokens:
            got = f"{self.overlap} of {self.chunk_tokens}"
            raise ValueError(f"Cutting: overlap must be below chunk_tokens, got {got}")

    def texts(self, text: str) -> Iterable[str]:
        """The texts of a record; an empty one stays, to be counted."""
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

    Whatever the progress bar counts is on the disk. A killed process loses none of it, and
    ``mode="resume"`` makes the same datastore as an uninterrupted run. Until all is done, readers
    see the datastore as it was.

    Args:
        source: what to read. Exact repetitions are left out, even of texts in the datastore.
        cutting: how to cut records into texts; None keeps records whole.
        mode: "new": ``path`` must be free. "append": add to a finished datastore. "resume": finish
            an interrupted write of the same source. "restart": roll an interrupted write back and
            write again. Without an interrupted write, "resume" and "restart" begin a new one.
        console: shows the progress; None shows none.
        encode: embeds batches elsewhere, as `ray_embedding` does.

    Raises:
        FileNotFoundError: there is no such source, or no datastore to append to.
        FileExistsError: ``path`` is not free, or "restart" meets a finished datastore.
        ValueError: the datastore has another embedder or other settings, a file is corrupt, or
            another process is writing there; as a SourceError, nothing in the source fits.
        OSError: for example, the disk is full; "resume" continues from there.
    """
    if mode not in MODES:
        raise ValueError(
            f"{_FUNCTION}: mode must be one of {', '.join(MODES)}, got {mode!r}"
        )
    path, cutting = Path(path), cutting or Cutting()
    settings = _settings(source, cutting)
    if not path.is_dir():
        # Refuse before creating a directory.
        _check_state(path, mode, settings)
        path.mkdir(parents=True, exist_ok=True)
    advice = (
        "the datastore is as its readers saw it before: free some space, then resume"
    )
    with locked(path), full_disk_explained(path, advice):
        # Before the lock, the journal could have belonged to a write under way.
        journal = _check_state(path, mode, settings)
        if mode != "resume" or journal or not (path / MANIFEST_FILE).exists():
            writer = StoreWriter.begin(path, embedder, settings, _FUNCTION, journal)
            with progress_bar(console, shown=console is not None) as bar:
                shard = writer.journal.shard or _write_texts(
                    writer, source, cutting, bar
                )
                writer.finish(shard, bar, thresholds or IndexThresholds(), encode)
        store = Datastore.open(path)
        check_embedder(_FUNCTION, embedder, store)
        return store


def _write_texts(
    writer: StoreWriter, source: Source, cutting: Cutting, bar: Progress
) -> DataFile:
    counts, seen, known = Counts(), SeenTexts(), writer.base.count
    for text in Datastore.open(writer.directory).texts if known else ():
        seen.add(text)
    rows = bar.track(
        _passages(source, cutting, seen, counts), description="writing texts"
    )
    try:
        report = {"settings": writer.journal.settings}
        if shard := writer.write_texts(rows, lambda: report | asdict(counts)):
            return shard
        named = counts.malformed_named
        raise SourceError(
            f"{source.name}: nothing to index: of {counts.records} records {counts.malformed} "
            f"are malformed, {counts.near_empty} texts have fewer than {cutting.min_chars} "
            f"characters, {counts.repeated} are repeated or among the {known} in the datastore, "
            f"{counts.binary} files are not text"
            + "".join(f"; {name}" for name in named)
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


def _check_state(path: Path, mode: str, settings: dict[str, Any]) -> Journal | None:
    """The journal of a write to resume. Refuses a mode that does not fit what is at ``path``."""
    journal = Journal.read(path)
    refuse_link(path / MANIFEST_FILE)
    if journal:
        if mode in ("new", "append"):
            raise ValueError(
                f"{_FUNCTION}: a write into {path} was interrupted, {journal.embedded} texts into "
                "its embedding: resume finishes it, restart rolls it back and begins anew"
            )
        was = journal.settings
        names = [
            n for n in sorted(was.keys() | settings) if was.get(n) != settings.get(n)
        ]
        if names and mode == "resume":
            odd = ", ".join(
                f"{n} was {was.get(n)!r}, is {settings.get(n)!r}" for n in names
            )
            write = f"the interrupted write in {path}"
            raise ValueError(f"{_FUNCTION}: {write} has other settings: {odd}")
    elif not (path / MANIFEST_FILE).exists():
        if path.exists() and set(path.iterdir()) - set(own_entries(path, OWN_PARTIALS)):
            raise FileExistsError(
                f"{_FUNCTION}: {path} is not empty and not a datastore"
            )
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
    return journal if mode == "resume" else None


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
        "tokenizer": tokenizer.name_or_path
        if tokenizer and cutting.chunk_tokens
        else None,
        "chunk_tokens": cutting.chunk_tokens,
        "overlap": cutting.overlap,
        "min_chars": cutting.min_chars,
    }


def text_digest(text: str) -> bytes:
    """A text's 128-bit digest."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


class SeenTexts:
    """Remembers texts by their digests. SQLite needs some 25 bytes for each."""

    def __init__(self) -> None:
        self._digests = sqlite3.connect(":memory:")
        self._digests.execute(
            "CREATE TABLE seen (digest BLOB PRIMARY KEY) WITHOUT ROWID"
        )

    def add(self, text: str) -> bool:
        """Remember ``text``. True if it was there already."""
        new = self._digests.execute(
            "INSERT OR IGNORE INTO seen VALUES (?)", [text_digest(text)]
        )
        return new.rowcount == 0


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
        begin = 0
        for end in range(max_tokens, len(starts), max_tokens - overlap):
            if starts[end] > begin:
                yield window[begin : starts[end]]
            begin = starts[end - overlap]
        # The next window cuts the last piece of this one again, with the text after it.
        if start + len(window) == len(text) or begin == 0:
            yield window[begin:]
            begin = len(window)
        start += begin


def folder_datastore(
    corpus: Path, embedder: Embedder, cutting: Cutting, root: Path, console: Console
) -> Datastore:
    """The datastore of the texts in ``corpus``, kept in a directory below ``root``.

    If no file has changed, nothing is embedded. If some have, the folder's earlier datastore gives
    the vectors of the passages that stayed, and is then removed. After a kill, the next call
    continues if the files are the same. Raises as `index_corpus`.
    """
    source = Source(corpus.resolve())
    # The name tells what makes the texts and vectors, and which texts there are.
    made = (cutting.chunk_tokens, cutting.overlap, cutting.min_chars)
    key = _name([[source.name, embedder.name, embedder.dim, *made]])
    texts = _name(
        [record["source"], record["text"]] for record in source.records(Counts())
    )
    path = root / f"{key}-{texts}"
    if (path / MANIFEST_FILE).exists():
        store = Datastore.open(path)
        show(console, f"{corpus} has not changed: {len(store)} passages in {path}")
        return store
    show(console, f"datastore of {corpus}: {path}")
    known: dict[bytes, np.ndarray] = {}
    earlier = [
        old for old in root.glob(f"{key}-*") if old != path and not old.is_symlink()
    ]
    for old in earlier:
        if (old / MANIFEST_FILE).exists():
            store = Datastore.open(old)
            known |= zip(
                map(text_digest, store.texts), store.embeddings.numpy(), strict=True
            )
    embedded = 0

    def encode(batches: Iterable[list[str]]) -> Generator[np.ndarray]:
        nonlocal embedded
        for batch in batches:
            rows = [known.get(text_digest(text)) for text in batch]
            new = [text for text, row in zip(batch, rows, strict=True) if row is None]
            found = iter(
                encode_checked("folder_datastore", embedder, new) if new else ()
            )
            embedded += len(new)
            yield np.stack([next(found) if row is None else row for row in rows])

    store = index_corpus(
        source,
        path,
        embedder,
        cutting=cutting,
        mode="resume",
        console=console,
        encode=encode,
    )
    binary = store.manifest.sources[0].get("binary", 0)
    skipped = f"; {binary} files that are not text were skipped" if binary else ""
    show(console, f"{len(store)} passages, {embedded} of them embedded now{skipped}")
    for old in earlier:
        # Locked: another process that is writing it needs it.
        with suppress(ValueError), locked(old):
            for name in (MANIFEST_FILE, JOURNAL_FILE):
                (old / name).unlink(missing_ok=True)
            remove_all_but(old, None)
            if not any(old.iterdir()):
                old.rmdir()
    return store


def _name(values: Iterable[list[Any]]) -> str:
    digest = hashlib.sha256()
    for value in values:
        digest.update(json.dumps(value).encode())
    return digest.hexdigest()[:12]
