"""Held-out prompts: texts to adapt to and to score, and the datastore that does not hold them."""

import hashlib
import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import pydantic
import torch
from pydantic import ConfigDict, Field

from hullft_ops.evaluation.experiment import Experiment
from hullft_ops.ttft.embedding import Embedder
from hullft_ops.ttft.store.base import Store
from hullft_ops.ttft.store.corpus import Corpus, IndexConfig
from hullft_ops.ttft.store.cutting import PASSAGE_CHARS, split_passages
from hullft_ops.ttft.store.datastore import Datastore
from hullft_ops.ttft.store.index import DATASTORES
from hullft_ops.ttft.terminal import counted, listed
from hullft_ops.ttft.validation import InputError, parse

# Bits per byte of a shorter text say little, and may not exist.
PROMPT_CHARS = 50
HELD_OUT_ONE_IN = 8
# Without a corpus: folders of torch in which a held-out file has relatives. Two cores embed their
# 2,600 passages in two minutes.
TORCH_SOURCES = ("optim/*.py", "nn/modules/*.py", "distributions/*.py")
# Prompts of a corpus if no limit is given: minutes on two cores.
LIMIT = 10


# With a character that is no space.
Text = Annotated[str, Field(pattern=r"\S")]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@pydantic.dataclasses.dataclass(frozen=True, config=ConfigDict(strict=True))
class HeldOut:
    """A text to adapt to and to score, with its domain, and what follows it: the answer.

    A line of a JSONL file of prompts has these keys, and may have others.
    """

    text: Text
    domain: str = "all"
    continuation: Text | None = None

    @property
    def id(self) -> str:
        """An id that depends only on the texts, not on their file or position."""
        content = self.text
        if self.continuation is not None:
            content += f"\0{self.continuation}"
        return _digest(content)[:16]


def passages_of(text: str) -> list[str]:
    """The passages of a document."""
    return [piece for piece in split_passages(text, PASSAGE_CHARS) if piece.strip()]


def prompts_of(name: str, text: str) -> Iterator[HeldOut]:
    """Each passage of a document with the next one; a document of one is cut into two."""
    pieces = passages_of(text)
    if len(pieces) == 1:
        first = next(split_passages(text, max(4, len(text) // 2 + 1)))
        pieces = [first, text[len(first) :]]
    for prompt, continuation in itertools.pairwise(pieces):
        if prompt.strip() and continuation.strip():
            yield HeldOut(prompt, name, continuation)


def read_prompts(path: Path) -> list[HeldOut]:
    """The prompts of a JSONL file in order, each text once. InputError names a wrong line."""
    prompts: dict[str, HeldOut] = {}
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if line.strip():
            prompt = parse(HeldOut, line, f"prompts {path}: line {number}")
            prompts.setdefault(prompt.text, prompt)
    return list(prompts.values())


def hold_out(
    documents: Mapping[str, str],
) -> tuple[list[tuple[str, str]], list[HeldOut]]:
    """Hold out one document in eight, by a hash of its name, and cut all.

    Args:
        documents: the text of each, by its name.

    Returns:
        The passages of the others, each with the name of its document, and the prompts, whose
        domain is their document. Prompts of which the others have a passage, whatever its layout,
        are left out.
    """
    names = sorted(documents, key=_digest)
    passages = [
        (passage, name)
        for number, name in enumerate(names)
        if number % HELD_OUT_ONE_IN
        for passage in passages_of(documents[name])
    ]
    known = {normalised(passage) for passage, _ in passages}
    prompts: dict[str, HeldOut] = {}
    for name in names[::HELD_OUT_ONE_IN]:
        for prompt in prompts_of(name, documents[name]):
            texts = [prompt.text, prompt.continuation or ""]
            keys = [normalised(text) for text in [*texts, "".join(texts)]]
            if min(map(len, keys)) >= PROMPT_CHARS and known.isdisjoint(keys):
                prompts[keys[0]] = prompt
    return passages, list(prompts.values())


def normalised(passage: str) -> str:
    """The passage's lines without indentation, trailing space and blank lines."""
    lines = (line.strip() for line in passage.splitlines())
    return "\n".join(line for line in lines if line)


def choose_prompts(
    prompts: Sequence[HeldOut], count: int | None, seed: int
) -> list[HeldOut]:
    """The first ``count`` by a hash of ``seed`` and text, or all. Domains take turns.

    InputError if there are fewer.
    """
    if len(prompts) < (count or 1):
        raise InputError(
            f"limit is {count or 1}, there are {len(prompts)} held-out prompts"
        )
    ranked = sorted(prompts, key=lambda prompt: _digest(f"{seed}\n{prompt.text}"))
    turns: defaultdict[str, Iterator[int]] = defaultdict(itertools.count)
    return sorted(ranked, key=lambda prompt: next(turns[prompt.domain]))[:count]


def not_in_store(prompts: Sequence[HeldOut], store: Store) -> list[HeldOut]:
    """The prompts that are no passage of the datastore, whatever their layout."""
    texts = {normalised(prompt.text) for prompt in prompts}
    texts -= {text for text in map(normalised, store.texts) if text in texts}
    return [prompt for prompt in prompts if normalised(prompt.text) in texts]


def open_texts(
    experiment: Experiment, store: Datastore | None, embedder: Embedder | None
) -> tuple[Datastore, list[HeldOut], list[str]]:
    """An experiment's datastore, prompts that it does not hold, and where they come from."""
    if store is not None and experiment.prompts is not None:
        every = read_prompts(experiment.prompts)
        prompts = not_in_store(every, store)
        if every and not prompts:
            raise InputError(f"prompts {experiment.prompts}: the datastore holds all")
        return store, choose_prompts(prompts, experiment.limit, experiment.seed), []
    return _held_out_texts(experiment, embedder)


def _held_out_texts(
    experiment: Experiment, embedder: Embedder | None
) -> tuple[Datastore, list[HeldOut], list[str]]:
    """A datastore of the corpus without the documents that the prompts are of."""
    corpus, include = experiment.corpus, experiment.include
    if corpus is None:
        corpus, include = str(Path(torch.__file__).parent), TORCH_SOURCES
    config = IndexConfig(
        text_column=experiment.text_column,
        include=include,
        exclude=experiment.exclude,
    )
    skipped: list[str] = []
    records = Corpus(corpus, config).records(skipped)
    documents = {record["source"]: record["text"] for record in records}
    passages, every = hold_out(documents)
    if not (every and passages):
        raise InputError(
            f"corpus {corpus}: {counted(len(documents), 'document')}: one to hold out must have a "
            f"prompt and a continuation of {PROMPT_CHARS} characters that the others lack, and "
            f"there must be others; skipped: {listed(skipped) or 'none'}"
        )
    count = experiment.limit or min(LIMIT, len(every))
    prompts = choose_prompts(every, count, experiment.seed)
    domains = list(dict.fromkeys(prompt.domain for prompt in prompts))
    notes = [f"{count} of {len(every)} held-out prompts, of {listed(domains)}"]
    if skipped:
        notes.append(f"{corpus}: {len(skipped)} skipped ({listed(skipped)})")
    name = embedder.name if embedder else None
    path = DATASTORES / _digest(repr([name, passages]))[:16]
    if path.exists():
        return Datastore.open(path), prompts, notes
    texts, sources = zip(*passages, strict=True)
    store = Datastore.build(texts, embedder, path, sources=sources, resume=True)
    return store, prompts, notes
