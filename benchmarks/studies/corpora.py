"""Corpora of documentation and code, with prompts from documents that are held out.

    apt-get install linux-doc perl-doc
    python -m benchmarks.studies.corpora --output corpora \\
        kernel=/usr/share/doc/linux-doc-6.12/Documentation perl=/usr/share/perl \\
        python=.venv/lib/python3.11/site-packages

writes ``store.jsonl``, a passage a line, and one passage of each document that is held out: by
turns into ``prompts.jsonl`` and into ``tuning.jsonl``, on which to choose settings. Each record has
"text", "domain" and "source".
"""

import argparse
import gzip
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

SUFFIXES = (".rst", ".rst.gz", ".pod", ".txt", ".txt.gz", ".md", ".py", ".c", ".h")
# Translations and tests repeat each other.
LEFT_OUT = {"translations", "_sources", "test", "tests", "_vendor"}
PASSAGE_CHARS = 800
PASSAGES_A_DOMAIN = 2700
# A manual of a thousand passages would leave no room for others.
PASSAGES_A_DOCUMENT = 30
HELD_OUT_ONE_IN = 4
SHORTEST_PROMPT = 400
# A prompt whose runs of five words stand in the store more often than this repeats it.
MOST_SHARED = 0.2
RUN = 5

Record = dict[str, str]
Runs = set[tuple[str, ...]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("domains", nargs="+", metavar="DOMAIN=FOLDER")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument(
        "--most-shared",
        type=float,
        default=MOST_SHARED,
        help="share of a prompt's runs of five words that the store may hold",
    )
    arguments = parser.parse_args()
    store: list[Record] = []
    held_out: list[list[Record]] = []
    for argument in arguments.domains:
        domain, _, folder = argument.partition("=")
        stored, held = split(domain, Path(folder))
        print(f"{domain}: {len(stored)} passages, {len(held)} documents held out")
        store += stored
        held_out += held
    arguments.output.mkdir(parents=True, exist_ok=True)
    write(store, arguments.output / "store.jsonl")
    prompts = choose_prompts(store, held_out, arguments.most_shared)
    write(prompts[::2], arguments.output / "prompts.jsonl")
    write(prompts[1::2], arguments.output / "tuning.jsonl")


def split(domain: str, folder: Path) -> tuple[list[Record], list[list[Record]]]:
    """Records for the store, each text once, and those of each held-out document.

    Raises:
        ValueError: the folder has no document.
    """
    paths = [path for path in folder.rglob("*") if _is_document(path, folder)]
    if not paths:
        raise ValueError(f"corpora: {domain}: no documents in {str(folder)!r}")
    stored: dict[str, Record] = {}
    held: list[list[Record]] = []
    # An order that looks random and is always the same.
    paths.sort(key=lambda path: _digest(path.relative_to(folder).as_posix()))
    for number, path in enumerate(paths):
        if number % HELD_OUT_ONE_IN == 0:
            held.append(records_of(path, domain, folder))
            continue
        for record in records_of(path, domain, folder):
            stored.setdefault(normalised(record["text"]), record)
        if len(stored) >= PASSAGES_A_DOMAIN:
            break
    return list(stored.values())[:PASSAGES_A_DOMAIN], held


def _is_document(path: Path, folder: Path) -> bool:
    if LEFT_OUT & set(path.relative_to(folder).parts):
        return False
    return path.name.endswith(SUFFIXES) and path.is_file() and not path.is_symlink()


def records_of(path: Path, domain: str, folder: Path) -> list[Record]:
    source = path.relative_to(folder).as_posix()
    return [
        {"text": text, "domain": domain, "source": source}
        for text in passages(read(path))[:PASSAGES_A_DOCUMENT]
    ]


def read(path: Path) -> str:
    content = path.read_bytes()
    if path.suffix == ".gz":
        content = gzip.decompress(content)
    return content.decode("utf-8", "replace")


def passages(text: str) -> list[str]:
    """Whole lines, up to `PASSAGE_CHARS` together; a longer line is a passage of its own."""
    pieces: list[str] = []
    piece = ""
    for line in text.splitlines(keepends=True):
        if piece and len(piece) + len(line) > PASSAGE_CHARS:
            pieces.append(piece)
            piece = ""
        piece += line
    return [piece for piece in [*pieces, piece] if piece.strip()]


def choose_prompts(
    store: list[Record], held_out: list[list[Record]], most_shared: float
) -> list[Record]:
    """One passage of each held-out document: long enough, and hardly repeated in the store."""
    known = {run for record in store for run in runs(record["text"])}
    prompts = []
    for records in held_out:
        fresh = []
        for record in records:
            if is_fresh(record["text"], known, most_shared):
                fresh.append(record)
        if fresh:
            prompts.append(min(fresh, key=lambda record: _digest(record["text"])))
    return prompts


def is_fresh(text: str, known: Runs, most_shared: float) -> bool:
    """Whether a text is long enough, and shares at most so many runs of words with the store."""
    text_runs = list(runs(text))
    shared = sum(run in known for run in text_runs)
    return len(text) >= SHORTEST_PROMPT and shared <= most_shared * len(text_runs)


def runs(text: str) -> Iterator[tuple[str, ...]]:
    words = text.split()
    for start in range(len(words) - RUN + 1):
        yield tuple(words[start : start + RUN])


def normalised(text: str) -> str:
    return " ".join(text.split())


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def write(records: Iterable[Record], path: Path) -> None:
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    path.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
