"""The commands ``hullft-ops index`` and ``hullft-ops info DIR``."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from hullft_ops._terminal import printable, show
from hullft_ops.ttft.store.build import Cutting, index_corpus
from hullft_ops.ttft.store.datastore import Datastore
from hullft_ops.ttft.store.embedding import Embedder, EncodeBatches, SentenceTransformerEmbedder
from hullft_ops.ttft.store.search import IndexThresholds
from hullft_ops.ttft.store.sources import Source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from hullft_ops.ttft.scale.cluster import Workers


@dataclass(frozen=True)
class IndexRequest:
    """The arguments of ``hullft-ops index``, by the same names. ``modes`` has at most one.

    ``workers`` are Ray's; None for this process alone.
    """

    source: Path
    out: Path
    embedder: str
    text_column: str
    metadata: tuple[str, ...]
    chunk_tokens: int | None
    overlap: int
    tokenizer: str | None
    min_chars: int
    max_bad_share: float
    flat_up_to: int
    ivf_up_to: int
    modes: tuple[str, ...]
    workers: "Workers | None" = None

    def __post_init__(self) -> None:
        if len(self.modes) > 1:
            raise ValueError(f"choose one of --{' and --'.join(self.modes)}")
        if self.chunk_tokens is None and (self.overlap or self.tokenizer):
            raise ValueError("--overlap and --tokenizer need --chunk-tokens")
        if not 0 <= self.max_bad_share <= 1:
            raise ValueError(f"--max-bad-share must be from 0 to 1, got {self.max_bad_share}")


def run_index(request: IndexRequest, out: Console, log: Console) -> Datastore:
    """Write the datastore, with progress on ``log``, and describe it on ``out``.

    Raises:
        OSError, ValueError: as `index_corpus`.
    """
    # Imported late: `describe` should not wait for transformers.
    from hullft_ops.ttft.store.embedding import open_embedder

    embedder = open_embedder(request.embedder)
    store = index_corpus(
        Source(request.source, request.text_column, request.metadata, request.max_bad_share),
        request.out,
        embedder,
        cutting=Cutting(
            _tokenizer(request, embedder) if request.chunk_tokens is not None else None,
            request.chunk_tokens,
            request.overlap,
            request.min_chars,
        ),
        thresholds=IndexThresholds(request.flat_up_to, request.ivf_up_to),
        mode=request.modes[0] if request.modes else "new",
        console=log,
        encode=_encode(request, embedder),
    )
    show(out, *_described(request.out, store))
    return store


def describe(path: Path, *, as_json: bool) -> str:
    """A description of the datastore at ``path``. Compares every file with its checksum.

    Raises:
        FileNotFoundError, ValueError: as `Datastore.open`.
    """
    store = Datastore.open(path)
    if as_json:
        # DEL is the only control character that JSON leaves as it is.
        return json.dumps(asdict(store.manifest), indent=2).replace("\x7f", "\\u007f")
    return "\n".join(_described(path, store))


def _described(path: Path, store: Datastore) -> list[str]:
    manifest = store.manifest
    columns = [name for name in store.rows.column_names if name != "text"]
    entries = {
        "texts": f"{manifest.count}",
        "embedder": f"{manifest.embedder}, {manifest.dim} dimensions",
        "metadata": ", ".join(columns) or "none",
        "search": str(manifest.index),
    }
    lines = [f"datastore {path}", *(f"  {name:<10} {value}" for name, value in entries.items())]
    for source, shard in zip(manifest.sources, manifest.shards, strict=False):
        lines.append(f"  {'source':<10} {_source_line(source, shard.count)}")
        lines += [f"  {'':<10} malformed {named}" for named in source.get("malformed_named", [])]
    return [printable(line) for line in lines]


def _source_line(source: dict[str, Any], count: int) -> str:
    if not source:
        return f"{count} texts given by a program"
    return (
        f"{source['settings']['source']}: {count} texts of {source['records']} records; left out: "
        f"{source['malformed']} malformed records, {source['near_empty']} near-empty texts, "
        f"{source['repeated']} repeated texts"
    )


def _encode(request: IndexRequest, embedder: Embedder) -> EncodeBatches | None:
    if request.workers is None:
        return None
    from hullft_ops.ttft.scale.embedding import ray_embedding

    return ray_embedding(embedder, request.embedder, request.workers)


def _tokenizer(request: IndexRequest, embedder: Embedder) -> "PreTrainedTokenizerBase":
    if request.tokenizer is None and isinstance(embedder, SentenceTransformerEmbedder):
        return embedder.tokenizer
    from hullft_ops.ttft.model.loading import open_tokenizer

    return open_tokenizer(request.tokenizer or request.embedder)
