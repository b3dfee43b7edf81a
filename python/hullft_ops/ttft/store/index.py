"""Turning a corpus into a datastore: it streams, and resumes after a kill."""

import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hullft_ops._terminal import NAMED
from hullft_ops.ttft.embedding import Embedder
from hullft_ops.ttft.errors import InputError
from hullft_ops.ttft.files import (
    check_output,
    new_folder,
    remove_output,
    unfinished,
)
from hullft_ops.ttft.store.base import Store, check_embedder
from hullft_ops.ttft.store.corpus import Corpus, IndexConfig, Record
from hullft_ops.ttft.store.cutting import (
    PASSAGE_CHARS,
    split_passages,
    token_chunks,
)
from hullft_ops.ttft.store.datastore import Datastore
from hullft_ops.ttft.store.format import (
    EMBEDDINGS,
    FILES,
    SKIPPED,
    SOURCE,
    TEXTS,
    Embed,
    Info,
    Source,
    embed_texts,
    finish,
    read_model,
    write_texts,
)

# The folder of the datastores of corpora.
DATASTORES = Path("hullft_datastores")

Cut = Callable[[str], Iterable[str]]


def index_corpus(
    corpus: str | Path | Corpus,
    path: str | Path,
    embedder: Embedder | None = None,
    config: IndexConfig | None = None,
    *,
    reuse: Store | None = None,
    embed: Embed | None = None,
    **options: Any,
) -> Datastore:
    """Write a corpus into a datastore, and open it.

    ``path`` appears whole, at the end. A killed process loses at most the last 128 vectors that it
    embedded: the same call goes on from there, and makes the same datastore. Exact repetitions are
    left out.

    Args:
        corpus: what to read, as `Corpus`.
        embedder: what makes the passages' vectors; None for search by words alone.
        reuse: a store of the same embedder, whose texts are not embedded again.
        embed: embeds batches of texts elsewhere; None for ``embedder.encode``. Not with ``reuse``.
        options: fields of `IndexConfig`, in place of ``config``.

    Raises:
        InputError: the corpus cannot be read, or has nothing to index.
        FileExistsError, ValueError: as from `check_output`; or an unfinished datastore has other
            settings.
    """
    config = _for_embedder(replace(config or IndexConfig(), **options), embedder)
    if not isinstance(corpus, Corpus):
        corpus = Corpus(corpus, config)
    cut = _cutter(embedder, config)
    settings = _settings(corpus, embedder, config)
    if reuse is not None:
        if embed is not None or embedder is None:
            raise ValueError("index_corpus: reuse needs an embedder, and no embed")
        check_embedder("index_corpus", embedder, reuse)
        embed = _reusing(reuse, embedder)
    check_output(path, inputs=[corpus.name])
    with new_folder(path, FILES, resume=True) as folder:
        if not _is_begun(folder, settings):
            for name in (SOURCE, EMBEDDINGS):
                (folder / name).unlink(missing_ok=True)
            source = _write_passages(corpus, folder, config, cut)
            source.settings = settings
            part = folder / f"{SOURCE}.part"
            part.write_text(source.model_dump_json(), encoding="utf-8")
            part.rename(folder / SOURCE)
        if embedder is not None:
            embed_texts(folder, embedder, embed)
        finish(folder, embedder)
    return Datastore.open(path)


def _for_embedder(config: IndexConfig, embedder: Embedder | None) -> IndexConfig:
    """The configuration with the length of passages that the embedder reads, if it has none."""
    if config.chunk_tokens is not None or embedder is None:
        return config
    return replace(config, chunk_tokens=getattr(embedder, "max_tokens", None) or 0)


def _settings(
    corpus: Corpus, embedder: Embedder | None, config: IndexConfig
) -> dict[str, Any]:
    """What decides the contents of a datastore."""
    return {
        "format": Info.model_fields["format"].default,
        "corpus": corpus.name,
        "contents": corpus.state,
        "embedder": f"{embedder.name} of dim {embedder.dim}" if embedder else None,
        **json.loads(json.dumps(asdict(config))),
    }


def _cutter(embedder: Embedder | None, config: IndexConfig) -> Cut:
    """What cuts a record into passages."""
    length = config.chunk_tokens
    if length is None:
        return lambda text: split_passages(text, PASSAGE_CHARS)
    if not length:
        return lambda text: [text]
    tokenizer = getattr(embedder, "tokenizer", None)
    if tokenizer is None:
        name = f"embedder {embedder.name}" if embedder else "search by words"
        raise ValueError(
            f"index_corpus: chunk_tokens is {length}, {name} has no tokenizer"
        )
    return lambda text: token_chunks(text, tokenizer, length)


def _is_begun(folder: Path, settings: dict[str, Any]) -> bool:
    """Whether an interrupted call with these settings has written all texts."""
    if not (folder / SOURCE).exists():
        return False
    try:
        before = read_model(Source, folder / SOURCE).settings
    except ValueError as error:
        warnings.warn(f"{error}: the datastore is begun anew", stacklevel=2)
        return False
    for name, value in settings.items():
        if before.get(name) != value:
            if not (folder / EMBEDDINGS).exists():
                return False
            raise ValueError(
                f"{folder} is of an interrupted run with another {name}: "
                f"{before.get(name)} instead of {value}: remove it to begin anew"
            )
    return True


def _write_passages(
    corpus: Corpus, folder: Path, config: IndexConfig, cut: Cut
) -> Source:
    """Write the corpus's passages, and return what was left out."""
    source = Source(settings={})
    skipped: list[str] = []
    passages = _passages(corpus.records(skipped), cut, config.min_chars, source)
    count = write_texts(folder, passages, config.metadata)
    source.skipped = len(skipped)
    source.skipped_named = skipped[:NAMED]
    (folder / SKIPPED).write_text("\n".join(skipped), encoding="utf-8")
    if count == 0:
        (folder / TEXTS).unlink()
        (folder / SKIPPED).unlink()
        raise InputError(f"{corpus.name}: nothing to index: {source.left_out()}")
    return source


def _passages(
    records: Iterable[Record], cut: Cut, min_chars: int, source: Source
) -> Iterator[Record]:
    """The passages of the records with their metadata. Counts in ``source`` what is left out."""
    seen: set[bytes] = set()
    for record in records:
        source.records += 1
        for text in cut(record["text"]):
            digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
            if len(text.strip()) < min_chars:
                source.short += 1
            elif digest in seen:
                source.repeated += 1
            else:
                seen.add(digest)
                yield {**record, "text": text}


def folder_datastore(
    corpus: str, embedder: Embedder | None, root: Path = DATASTORES, **options: Any
) -> Datastore:
    """The datastore of ``corpus`` with fields of `IndexConfig`, kept below ``root``.

    If the corpus has changed since the last call, a new one takes its place; passages that have
    stayed are not embedded again. Raises as `index_corpus`.
    """
    config = _for_embedder(IndexConfig(**options), embedder)
    contents = Corpus(corpus, config)
    settings = _settings(contents, embedder, config)
    place = Path(corpus).resolve()
    encoder = embedder.name if embedder else None
    name = f"{place.name}-{_short_digest([str(place), encoder, options])}"
    path = root / f"{name}-{_short_digest(settings)}"
    if path.exists():
        return Datastore.open(path)
    older = _of_other_contents(root, name, settings)
    reuse = None
    for folder in older if embedder else []:
        # Not one that is unfinished, or that a kill has removed in part.
        if folder.name.startswith(name):
            with suppress(ValueError):
                reuse = Datastore.open(folder)
    store = index_corpus(contents, path, embedder, config, reuse=reuse)
    for folder in older:
        remove_output(folder, FILES)
    return store


def _of_other_contents(root: Path, name: str, settings: dict[str, Any]) -> list[Path]:
    """The datastores of the same corpus as it was before, also what a kill has left of one.

    Their records say so, and they have the names that follow from it: a copy has another.
    """
    folders = []
    for entry in sorted(root.glob("*")):
        try:
            before = read_model(Source, entry / SOURCE).settings
        except ValueError:
            continue
        path = root / f"{name}-{_short_digest(before)}"
        is_named_so = entry in (path, unfinished(path)) and not entry.is_symlink()
        if is_named_so and before != settings:
            folders.append(entry)
    return folders


def _short_digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:8]


def _reusing(store: Store, embedder: Embedder) -> Embed:
    """Embeds only texts that are not in ``store``."""
    positions = {text: position for position, text in enumerate(store.texts)}

    def embed(batches: Iterable[list[str]]) -> Iterator[np.ndarray]:
        for batch in batches:
            vectors = np.empty((len(batch), store.dim), np.float32)
            known = [i for i, text in enumerate(batch) if text in positions]
            new = [i for i, text in enumerate(batch) if text not in positions]
            if known:
                rows = torch.tensor([positions[batch[i]] for i in known])
                vectors[known] = store.vectors(rows).numpy()
            if new:
                vectors[new] = embedder.encode([batch[i] for i in new])
            yield vectors

    return embed
