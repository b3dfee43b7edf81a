"""Texts: a datastore's passages, and held-out prompts, which are scored and never trained on."""

import hashlib
import importlib.util
import itertools
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hullft_ops._terminal import echo
from hullft_ops.ttft.errors import InputError
from hullft_ops.ttft.evaluation.config import Config, ConfigError, open_store, refusing
from hullft_ops.ttft.store.datastore import Datastore
from hullft_ops.ttft.store.embedding import Embedder
from hullft_ops.ttft.store.sources import is_unicode, numbered, object_of

# About this much source fills the 256 tokens that the default embedder reads.
PASSAGE_CHARS = 800
# Bits per byte of a shorter text say little, and may not exist.
PROMPT_CHARS = 50
HELD_OUT_ONE_IN = 8

# Folders of sibling modules, so that a held-out file has relatives in the store.
FAMILIES = (
    ("torch", "optim/*.py"),
    ("torch", "nn/modules/*.py"),
    ("torch", "distributions/*.py"),
    ("transformers", "models/*/modeling_*.py"),
    ("networkx", "algorithms/*.py"),
    ("matplotlib", "*.py"),
)
# Two cores embed about 25 passages a second, so this store takes 90 seconds.
PASSAGE_BUDGET = 2500
# A message names this many lines of a corpus.
_NAMED_LINES = 3
NO_DOMAIN = "all"
# The folder of the datastores of corpora.
DATASTORES = "hullft_datastores"


@dataclass(frozen=True)
class Document:
    """A file or a record. Each family of documents is split separately."""

    family: str
    name: str
    text: str

    @property
    def rank(self) -> str:
        return hashlib.sha256(self.name.encode()).hexdigest()

    def passages(self) -> list[str]:
        return [p for p in split_passages(self.text, PASSAGE_CHARS) if p.strip()]


@dataclass(frozen=True)
class Passage:
    """A verbatim piece of the document that ``source`` names."""

    source: str
    text: str


@dataclass(frozen=True)
class Prompt:
    """A text to adapt to and to score, with its domain."""

    text: str
    domain: str = NO_DOMAIN

    @property
    def id(self) -> str:
        """An id that depends only on the text, not on its file or position."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Corpus:
    """The passages for the datastore, and those that may be prompts, with documents as domains.

    Whole documents are held out, by a hash of their name. These are left out: passages that the
    store already held, ``repeated``, and held-out ones that it also holds, ``leaked``, whatever
    their layout; short held-out ones; and ``malformed`` lines of the input.
    """

    name: str
    store: list[Passage]
    held_out: list[Prompt]
    documents: int
    held_out_documents: int
    repeated: int
    leaked: int
    malformed: list[str]

    def fingerprint(self, embedder_name: str) -> str:
        """SHA-256 of the embedder's name and of the store's texts in order."""
        texts = (passage.text for passage in self.store)
        return hashlib.sha256("\0".join([embedder_name, *texts]).encode()).hexdigest()


def installed_corpus() -> Corpus:
    """Sources of installed packages: about ``PASSAGE_BUDGET`` passages from `FAMILIES`."""
    found = [document for family in FAMILIES for document in _family_documents(*family)]
    if not found:
        packages = ", ".join(sorted({package for package, _ in FAMILIES}))
        raise InputError(f"corpus: no sources of {packages} found; give a corpus file")
    families = {document.family for document in found}
    budgets = dict.fromkeys(families, PASSAGE_BUDGET // len(families))
    documents: list[Document] = []
    for document in sorted(found, key=lambda document: document.rank):
        size = len(document.passages())
        if size <= budgets[document.family]:
            budgets[document.family] -= size
            documents.append(document)
    return _split("installed packages", documents, [])


def jsonl_corpus(path: Path) -> Corpus:
    """The records of a JSONL file: one object per line, whose string "text" is a document."""
    documents, malformed = [], []
    with refusing(f"corpus {path}"), path.open("rb") as lines:
        for number, line in numbered(lines):
            try:
                documents.append(
                    Document("", f"line {number}", record_of_line(line)["text"])
                )
            except ValueError as error:
                malformed.append(f"line {number}: {error}")
    if not documents:
        what = (
            f"{len(malformed)} lines, none usable ({malformed[0]})"
            if malformed
            else "empty"
        )
        raise InputError(
            f'corpus {path}: {what}; each line must be an object with a string "text"'
        )
    return _split(path.name, documents, malformed)


def _family_documents(package: str, pattern: str) -> Iterator[Document]:
    spec = importlib.util.find_spec(package)
    if spec is not None and spec.submodule_search_locations:
        root = Path(spec.submodule_search_locations[0])
        for path in root.glob(pattern):
            name, text = (
                path.relative_to(root.parent).as_posix(),
                path.read_text(encoding="utf-8"),
            )
            yield Document(f"{package}/{pattern}", name, text)


def record_of_line(line: bytes) -> dict[str, Any]:
    """The record on a line, with a "text"; a ValueError says what is wrong with it."""
    record = object_of(line)
    text = record.get("text")
    if not isinstance(text, str):
        raise ValueError('no string "text"')
    if not text.strip():
        raise ValueError('blank "text"')
    if not is_unicode(text):
        raise ValueError('"text" with half a surrogate pair')
    return record


def _split(name: str, documents: list[Document], malformed: list[str]) -> Corpus:
    held: list[Document] = []
    kept: list[Document] = []
    order = sorted(documents, key=lambda document: (document.family, document.rank))
    for _, family in itertools.groupby(order, key=lambda document: document.family):
        for number, document in enumerate(family):
            (kept if number % HELD_OUT_ONE_IN else held).append(document)
    passages = [Passage(d.name, text) for d in kept for text in d.passages()]
    store: dict[str, Passage] = {}
    for passage in passages:
        store.setdefault(normalised(passage.text), passage)
    candidates = {
        normalised(text): Prompt(text, d.name) for d in held for text in d.passages()
    }
    candidates = {key: p for key, p in candidates.items() if len(key) >= PROMPT_CHARS}
    held_out = [prompt for key, prompt in candidates.items() if key not in store]
    return Corpus(
        name=name,
        store=list(store.values()),
        held_out=held_out,
        documents=len(documents),
        held_out_documents=len(held),
        repeated=len(passages) - len(store),
        leaked=len(candidates) - len(held_out),
        malformed=malformed,
    )


# Strongest first: a top-level definition, a method, a blank line, a line, a word.
_BOUNDARIES = tuple(
    re.compile(pattern, re.MULTILINE)
    for pattern in (
        r"^(?:@.*\n)*(?:class|def|async def) ",
        r"^ {4}(?:@.*\n {4})*(?:def|async def) ",
        r"(?<=\n\n)(?!\n)",
        r"(?<=\n)",
        r"(?<=\s)(?=\S)",
    )
)


def split_passages(text: str, max_chars: int) -> Iterator[str]:
    """Consecutive pieces of ``text`` that join up to it again, at most ``max_chars`` each.

    A piece ends at the strongest boundary in the second half of its span, so functions and
    paragraphs stay whole if they fit. No piece of a text that is cut is shorter than
    ``max_chars // 4`` characters.
    """
    if max_chars < 4:
        raise ValueError(
            f"split_passages: max_chars must be at least 4, got {max_chars}"
        )
    start = 0
    while (remaining := len(text) - start) > max_chars:
        end = start + min(max_chars, remaining - max_chars // 4)
        for boundary in _BOUNDARIES:
            if found := [*boundary.finditer(text, start + max_chars // 2, end)]:
                end = found[-1].start()
                break
        yield text[start:end]
        start = end
    if remaining:
        yield text[start:]


def normalised(passage: str) -> str:
    """The passage's lines without indentation, trailing space and blank lines."""
    return "\n".join(filter(None, (line.strip() for line in passage.splitlines())))


def load_corpus(file: Path | None) -> Corpus:
    """The corpus in a JSONL file, or of the installed packages. Logs the lines it leaves out."""
    corpus = jsonl_corpus(file) if file else installed_corpus()
    if corpus.malformed:
        named = "; ".join(corpus.malformed[:_NAMED_LINES])
        more = "; ..." if len(corpus.malformed) > _NAMED_LINES else ""
        echo(
            f"{corpus.name}: {len(corpus.malformed)} lines left out ({named}{more})",
            err=True,
        )
    return corpus


def open_or_build(
    corpus: Corpus, embedder: Embedder, path: Path
) -> tuple[Datastore, bool]:
    """The corpus's datastore at ``path``, and whether it already existed."""
    try:
        store = Datastore.open(path)
    except FileNotFoundError:
        echo(f"no datastore for this corpus at {path}: building it", err=True)
    except ValueError as error:
        echo(f"{error}: building it again", err=True)
    else:
        echo(f"datastore of {len(store)} passages found: {path}", err=True)
        return store, True
    texts = (passage.text for passage in corpus.store)
    with refusing(f"datastore {path}"):
        return Datastore.build(texts, embedder, path, overwrite=True), False


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a JSONL file in order, each text once; a `ConfigError` says what is wrong."""
    prompts: dict[str, Prompt] = {}
    with refusing(f"prompts {path}"), path.open("rb") as lines:
        for number, line in numbered(lines):
            with refusing(f"line {number}"):
                record = record_of_line(line)
                domain = record.get("domain", NO_DOMAIN)
                if not isinstance(domain, str):
                    raise ValueError(
                        f'"domain" must be a string, got {json.dumps(domain)}'
                    )
                if not is_unicode(domain):
                    raise ValueError('"domain" with half a surrogate pair')
            prompts.setdefault(record["text"], Prompt(record["text"], domain))
    if not prompts:
        raise ConfigError(f"prompts {path}: holds no prompt")
    return list(prompts.values())


def choose_prompts(prompts: Sequence[Prompt], count: int, seed: int) -> list[Prompt]:
    """The first ``count`` by a hash of ``seed`` and text. Domains take turns."""
    ranked = sorted(
        prompts, key=lambda p: hashlib.sha256(f"{seed}\n{p.text}".encode()).digest()
    )
    turns: defaultdict[str, Iterator[int]] = defaultdict(itertools.count)
    return sorted(ranked, key=lambda prompt: next(turns[prompt.domain]))[:count]


def open_texts(
    config: Config, embedder: Embedder
) -> tuple[Path, Datastore, list[Prompt]]:
    """The datastore that ``config`` names, with its path, and the prompts that it does not hold."""
    if (config.store is None) != (config.prompts is None):
        raise ConfigError("store and prompts must be given together")
    if config.store is None or config.prompts is None:
        corpus = load_corpus(config.corpus)
        path = Path(DATASTORES) / corpus.fingerprint(embedder.name)[:16]
        store, _ = open_or_build(corpus, embedder, path)
        prompts = [Prompt(prompt.text) for prompt in corpus.held_out]
    elif config.corpus is not None:
        raise ConfigError("corpus must not be given along with store and prompts")
    else:
        path, prompts = config.store, read_prompts(config.prompts)
        store = open_store(path)
    return path, store, _unknown_prompts(prompts, store, embedder, config)


def _unknown_prompts(
    prompts: list[Prompt], store: Datastore, embedder: Embedder, config: Config
) -> list[Prompt]:
    """As many prompts as the configuration says, without those whose nearest text is the prompt."""
    ranked = choose_prompts(prompts, len(prompts), config.seed)
    limit = config.limit or len(ranked)
    chosen: list[Prompt] = []
    seen = 0
    # Embedding takes time, so look at no more prompts than necessary, and at many together.
    while len(chosen) < limit and seen < len(ranked):
        some = ranked[seen : seen + limit - len(chosen)]
        _, nearest = store.search(embedder.encode([prompt.text for prompt in some]), 1)
        for prompt, position in zip(some, nearest[:, 0].tolist(), strict=True):
            if normalised(store.texts[position]) != normalised(prompt.text):
                chosen.append(prompt)
        seen += len(some)
    if seen > len(chosen):
        echo(
            f"{seen - len(chosen)} prompts left out: the datastore holds their text",
            err=True,
        )
    if not ranked:
        raise ConfigError(
            "the corpus holds out no text that is long enough for a prompt"
        )
    if not chosen:
        raise ConfigError(
            "no prompt is left, the datastore holds the text of all of them"
        )
    if len(chosen) < limit and config.limit is not None:
        raise ConfigError(f"limit is {limit}, there are {len(chosen)} prompts")
    return chosen
