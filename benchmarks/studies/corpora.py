"""Corpora of documentation and code, with prompts and what follows them from held-out documents.

    apt-get download linux-doc-6.12 perl-doc && dpkg-deb -x ... packages
    python -m benchmarks.studies.corpora --output documentation --files "*.rst*" "*.pod" -- \\
        kernel=packages/usr/share/doc/linux-doc-6.12/Documentation \\
        perl=packages/usr/share/perl/5.40.1

writes ``documents.jsonl``, a document a line, for ``hullft-ops index``. Of each document that is
held out, it writes a passage as a prompt, and the next one as its continuation: 16 into
``tuning.jsonl``, on which to choose settings, and the others into ``prompts.jsonl``. Each record
has "text", "domain" and "source".
"""

import argparse
import gzip
import hashlib
import json
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path

# Translations and tests repeat each other.
LEFT_OUT = {"translations", "_sources", "test", "tests", "_vendor"}
PASSAGE_CHARS = 800
PASSAGES = 2700
# A manual of a thousand passages would leave no room for others.
PASSAGES_A_DOCUMENT = 30
HELD_OUT_ONE_IN = 4
HELD_OUT = 70
TUNING_PROMPTS = 16
SHORTEST_PROMPT = 600
RUN = 5

Record = dict[str, str]
Runs = set[tuple[str, ...]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("domains", nargs="+", metavar="DOMAIN=FOLDER")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--files", nargs="+", required=True, metavar="PATTERN")
    parser.add_argument(
        "--most-shared",
        type=float,
        default=1,
        help="share of a prompt's runs of five words that the documents may hold",
    )
    arguments = parser.parse_args()
    documents: list[Record] = []
    held_out: list[list[Record]] = []
    for argument in arguments.domains:
        domain, _, folder = argument.partition("=")
        stored, held = split(
            domain,
            Path(folder),
            arguments.files,
            PASSAGES // len(arguments.domains),
            HELD_OUT // len(arguments.domains),
        )
        print(f"{domain}: {len(stored)} documents, {len(held)} held out")
        documents += stored
        held_out += held
    arguments.output.mkdir(parents=True, exist_ok=True)
    write(documents, arguments.output / "documents.jsonl")
    prompts = choose_prompts(documents, held_out, arguments.most_shared)
    write(prompts[:TUNING_PROMPTS], arguments.output / "tuning.jsonl")
    write(prompts[TUNING_PROMPTS:], arguments.output / "prompts.jsonl")


def split(
    domain: str, folder: Path, files: list[str], passages: int, held_out: int
) -> tuple[list[Record], list[list[Record]]]:
    """Documents of so many passages together, and the passages of so many held-out ones.

    Raises:
        ValueError: the folder has no document.
    """
    paths = [path for path in folder.rglob("*") if _is_document(path, folder, files)]
    if not paths:
        raise ValueError(f"corpora: {domain}: no documents in {str(folder)!r}")
    stored: list[Record] = []
    held: list[list[Record]] = []
    count = 0
    # An order that looks random and is always the same.
    paths.sort(key=lambda path: _digest(path.relative_to(folder).as_posix()))
    for number, path in enumerate(paths):
        records = records_of(path, domain, folder)
        if count >= passages and len(held) >= held_out:
            break
        if number % HELD_OUT_ONE_IN == 0:
            held.append(records)
        elif records and count < passages:
            text = "".join(record["text"] for record in records)
            stored.append(records[0] | {"text": text})
            count += len(records)
    return stored, held


def _is_document(path: Path, folder: Path, files: list[str]) -> bool:
    if LEFT_OUT & set(path.relative_to(folder).parts):
        return False
    is_chosen = any(fnmatchcase(path.name, pattern) for pattern in files)
    return is_chosen and path.is_file() and not path.is_symlink()


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
    documents: list[Record], held_out: list[list[Record]], most_shared: float
) -> list[Record]:
    """A passage of each held-out document with the next one: long enough, and hardly repeated."""
    known = {run for record in documents for run in runs(record["text"])}
    prompts = []
    for records in held_out:
        fresh = []
        for record, following in pairwise(records):
            lengths = len(record["text"]), len(following["text"])
            has_size = min(lengths) >= SHORTEST_PROMPT and max(lengths) <= PASSAGE_CHARS
            if has_size and is_fresh(record["text"], known, most_shared):
                fresh.append(record | {"continuation": following["text"]})
        if fresh:
            prompts.append(min(fresh, key=lambda record: _digest(record["text"])))
    return sorted(
        prompts, key=lambda prompt: _digest(prompt["source"] + prompt["domain"])
    )


def is_fresh(text: str, known: Runs, most_shared: float) -> bool:
    """Whether the documents hold at most so many of a text's runs of words."""
    text_runs = list(runs(text))
    shared = sum(run in known for run in text_runs)
    return shared <= most_shared * len(text_runs)


def runs(text: str) -> Iterator[tuple[str, ...]]:
    words = text.split()
    for start in range(len(words) - RUN + 1):
        yield tuple(words[start : start + RUN])


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def write(records: Iterable[Record], path: Path) -> None:
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    path.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
