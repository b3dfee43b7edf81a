"""From a corpus to a datastore: streamed, resumable after a kill, added to later."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import Progress

from hullft_ops._checks import check_integer
from hullft_ops._files import full_disk_explained
from hullft_ops.ttft.chunking import token_chunks
from hullft_ops.ttft.datastore import Datastore
from hullft_ops.ttft.embedding import Embedder, EncodeBatches, check_embedder
from hullft_ops.ttft.journal import Journal, locked
from hullft_ops.ttft.manifest import (
    MANIFEST_FILE,
    OWN_PARTIALS,
    Manifest,
    own_entries,
    refuse_link,
)
from hullft_ops.ttft.passage_rows import Left, SeenTexts, passage_rows
from hullft_ops.ttft.progress import progress_bar
from hullft_ops.ttft.search_index import IndexThresholds
from hullft_ops.ttft.sources import Counts, Record, Source, SourceError
from hullft_ops.ttft.store_writer import StoreWriter

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FUNCTION = "index_corpus"
MODES = ("new", "append", "resume", "restart")


@dataclass(frozen=True)
class Cutting:
    """Which texts a record gives.

    Attributes:
        tokenizer: counts the tokens; needed with ``chunk_tokens``.
        chunk_tokens: length of a text in tokens, at least 1; whole records when None.
        overlap: tokens that a text shares with the one before it, fewer than ``chunk_tokens``.
        min_chars: texts with fewer characters, blanks at both ends aside, are left out.

    Raises:
        TypeError: a size that is not an int.
        ValueError: a size out of range, or ``chunk_tokens`` without a fast tokenizer, or
            ``overlap`` without ``chunk_tokens``.
    """

    tokenizer: "PreTrainedTokenizerBase | None" = None
    chunk_tokens: int | None = None
    overlap: int = 0
    min_chars: int = 16

    def __post_init__(self) -> None:
        self._check("min_chars", 0)
        self._check("overlap", 0)
        if self.chunk_tokens is None:
            if self.overlap:
                raise ValueError(f"Cutting: overlap {self.overlap} needs chunk_tokens")
            return
        self._check("chunk_tokens", 1)
        if self.tokenizer is None:
            raise ValueError("Cutting: chunk_tokens needs a tokenizer")
        self.cut()

    def _check(self, name: str, least: int) -> None:
        # Of NumPy's integers, which JSON does not know, Python's are made.
        whole = check_integer("Cutting", name, getattr(self, name), least)
        object.__setattr__(self, name, whole)

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

    Texts go to the disk first and are embedded from there. What the progress bar counts is on the
    disk: a killed process loses none of it, and ``mode="resume"`` gives the datastore that an
    uninterrupted run would have given. Readers see the datastore as it was until all is done.

    Args:
        source: what to read. Exact repetitions, of texts in the datastore too, are left out.
        path: the datastore's directory.
        embedder: gives the unit vectors.
        cutting: how records are cut into texts; whole records when None.
        thresholds: which search index to build.
        mode: "new": ``path`` must be free. "append": add to a finished datastore. "resume": finish
            an interrupted write of the same source, or begin one where there is none. "restart":
            roll an interrupted write back, then write anew; begin one where there is none.
        console: where progress is drawn; nowhere when None.
        encode: embeds batches elsewhere, as `hullft_ops.ttft.scale.embedding.ray_embedding` does;
            in this process when None.

    Raises:
        FileNotFoundError: there is no such source, or no datastore to append to.
        FileExistsError: ``mode`` is "new" and ``path`` is not free, or "restart" and a finished
            datastore is there.
        ValueError: another embedder or other settings than the datastore's, a corrupt file, or
            another process is writing the datastore.
        SourceError: the source cannot be read as asked, or nothing in it fits.
        OSError: the disk is full, for one; resume goes on from there.
    """
    if mode not in MODES:
        raise ValueError(f"{_FUNCTION}: mode must be one of {', '.join(MODES)}, got {mode!r}")
    cutting = cutting or Cutting()
    path = Path(path)
    settings = _settings(source, cutting)
    if not path.is_dir():
        # What is refused leaves no directory where there was none.
        _check_state(path, mode, settings)
        path.mkdir(parents=True, exist_ok=True)
    advice = "the datastore is as its readers saw it before: free some space, then resume"
    with locked(path), full_disk_explained(path, advice):
        # Without the lock, a journal may be that of a write under way.
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
    if writer.base and writer.journal.shard is None:
        for text in Datastore.open(writer.directory).texts:
            seen.add(text)
    known = writer.base.count if writer.base else 0
    rows: Iterable[Record] = passage_rows(
        source.records(counts), cutting.cut(), cutting.min_chars, seen, left
    )
    rows = bar.track(rows, description="writing texts")

    def report() -> dict[str, Any]:
        return {
            "settings": writer.journal.settings,
            "records": counts.records,
            "malformed": counts.malformed,
            "malformed_named": counts.named,
            "near_empty": left.near_empty,
            "repeated": left.repeated,
        }

    try:
        count = writer.write_texts(rows, report)
    except (ValueError, OSError):
        # Texts that cannot be written now cannot be when the write is resumed.
        writer.abandon()
        raise
    if count == 0:
        writer.abandon()
        raise SourceError(
            f"{source.name}: nothing to index: of {counts.records} records {counts.malformed} are "
            f"malformed, {left.near_empty} texts have fewer than {cutting.min_chars} characters, "
            f"{left.repeated} are repeated"
            + (f" or among the {known} in the datastore" if known else "")
            + "".join(f"; {name}" for name in counts.named)
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
    """What decides which texts come, as JSON keeps it."""
    tokenizer = cutting.tokenizer
    return {
        "source": source.name,
        "text_column": source.text_column,
        "metadata": list(source.metadata),
        "max_bad_share": source.max_bad_share,
        "tokenizer": tokenizer.name_or_path if tokenizer and cutting.chunk_tokens else None,
        "chunk_tokens": cutting.chunk_tokens,
        "overlap": cutting.overlap,
        "min_chars": cutting.min_chars,
    }
