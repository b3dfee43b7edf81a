"""A corpus of three domains from what a Debian machine has, with held-out prompts.

    python tools/debian_corpus.py OUT     # needs Debian's apt-get, dpkg and man-db

writes ``OUT/corpus.jsonl``, passages to index with hullft-ops index, and passages of documents that
are not indexed: ``OUT/tuning.jsonl`` to tune on and ``OUT/prompts.jsonl`` to evaluate on. All have
"text", "domain" and "source" in each record.
The text is none that the model which ships with hullft_ops was trained on: no file of the
standard library, no page of manpages or manpages-dev.
"""

import argparse
import gzip
import hashlib
import importlib.util
import json
import os
import subprocess
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice, zip_longest
from pathlib import Path

from hullft_ops.ttft._files import replacing
from hullft_ops.ttft.evaluation.corpus import normalised, split_passages

HELD_OUT_ONE_IN = 4
# A manual of a thousand passages would leave no room for others.
DOCUMENT_PASSAGES = 60
# A held-out passage is no prompt once this share of its word 8-grams stands in the store.
SHINGLE_WORDS = 8
MAX_SHARED = 0.3

PYTHON_PACKAGES = (
    *(
        "datasets",
        "fsspec",
        "huggingface_hub",
        "matplotlib",
        "networkx",
        "numpy",
        "peft",
    ),
    *(
        "pip",
        "pyarrow",
        "pydantic",
        "rich",
        "scipy",
        "sklearn",
        "sympy",
        "torch",
        "transformers",
    ),
)
MANUAL_PACKAGES = (
    *("apt", "bash", "btrfs-progs", "coreutils", "debhelper", "devscripts", "dpkg-dev"),
    *(
        "e2fsprogs",
        "ffmpeg",
        "gpg",
        "iproute2",
        "libncurses-dev",
        "libssl-doc",
        "libx11-doc",
    ),
    *(
        "lvm2",
        "mdadm",
        "openssh-client",
        "perl-doc",
        "postgresql-doc-17",
        "rsync",
        "sudo",
    ),
    *("systemd", "tcl8.6-doc", "tk8.6-doc", "util-linux", "zsh-common"),
)
TEXT_PACKAGES = (
    "debian-policy",
    "debian-reference-en",
    "git-doc",
    "linux-doc",
    "python3-doc",
)
TEXT_SUFFIXES = (".txt", ".rst", ".txt.gz", ".rst.gz")


@dataclass(frozen=True)
class Document:
    """A file; ``family`` groups those that are alike. Its text is read when asked for."""

    domain: str
    family: str
    name: str
    read: Callable[[], str]

    def rank(self, seed: int) -> bytes:
        return hashlib.sha256(f"{seed}/{self.domain}/{self.name}".encode()).digest()

    def passages(self, chars: int) -> Iterator[dict[str, str]]:
        """Records of the document's passages; none where it is not UTF-8."""
        try:
            text = self.read()
        except UnicodeDecodeError:
            return
        for passage in split_passages(text, chars):
            if passage.strip():
                yield {"text": passage, "domain": self.domain, "source": self.name}


def python_documents() -> Iterator[Document]:
    """Sources of installed packages, without tests."""
    for package in PYTHON_PACKAGES:
        spec = importlib.util.find_spec(package)
        for root in map(Path, (spec and spec.submodule_search_locations) or ()):
            for path in root.rglob("*.py"):
                name = path.relative_to(root.parent)
                if {"tests", "test", "testing", "_vendor"}.isdisjoint(name.parts):
                    yield Document("python", package, name.as_posix(), _reader(path))


def manual_documents(unpacked: Path) -> Iterator[Document]:
    """Rendered manual pages in English; links and pages that only name another are left out."""
    for package in MANUAL_PACKAGES:
        root = unpacked / package / "usr/share/man"
        for path in root.glob("man*/*.gz"):
            if not path.is_symlink() and path.stat().st_size > 400:
                name = f"{package}/{path.relative_to(root).as_posix()}"
                yield Document("man", package, name, _manual_reader(path))


def text_documents(unpacked: Path) -> Iterator[Document]:
    """Documentation that is plain text; a part of the kernel's is a family of its own."""
    for package in TEXT_PACKAGES:
        root = unpacked / package / "usr/share/doc"
        for path in root.rglob("*"):
            parts = path.relative_to(root).parts
            wanted = (
                path.name.endswith(TEXT_SUFFIXES)
                and path.is_file()
                and not path.is_symlink()
            )
            # The kernel's pages stand there twice.
            twice = package == "linux-doc" and "_sources" in parts
            if wanted and not twice and "translations" not in parts:
                family = "/".join(parts[:3]) if package == "linux-doc" else package
                yield Document("docs", family, "/".join(parts), _reader(path))


def unpack(packages: Iterable[str], unpacked: Path) -> None:
    """Download the Debian packages that ``unpacked`` lacks into it, installing nothing."""
    unpacked.mkdir(parents=True, exist_ok=True)
    for package in packages:
        if not (unpacked / package).exists():
            archive = _download(package, unpacked)
            command = ["dpkg", "-x", str(archive), str(unpacked / package)]
            subprocess.run(command, check=True)
            archive.unlink()


def split_domain(
    documents: Iterable[Document], passages: int, chars: int, seed: int
) -> tuple[list[dict[str, str]], list[list[dict[str, str]]]]:
    """``passages`` records for the store, each text once, and those of each held-out document.

    Families take turns, so that each has documents on both sides and none fills the budget.
    """
    families: dict[str, list[Document]] = {}
    for document in sorted(documents, key=lambda document: document.rank(seed)):
        families.setdefault(document.family, []).append(document)
    stored: dict[str, dict[str, str]] = {}
    held: list[list[dict[str, str]]] = []
    for row, turn in enumerate(zip_longest(*families.values())):
        for document in filter(None, turn):
            if row % HELD_OUT_ONE_IN == 0:
                held.append(list(document.passages(chars)))
                continue
            for record in islice(document.passages(chars), DOCUMENT_PASSAGES):
                stored.setdefault(normalised(record["text"]), record)
            if len(stored) >= passages:
                return list(stored.values())[:passages], held
    return list(stored.values()), held


def choose_prompts(
    held: list[list[dict[str, str]]],
    known: set[int],
    count: int,
    least_chars: int,
    seed: int,
) -> list[dict[str, str]]:
    """Passages by hash, one of each held-out document in turn, until there are ``count``."""
    ranked = [
        sorted(
            (
                record
                for record in records
                if _is_prompt(record["text"], known, least_chars)
            ),
            key=lambda record: _text_rank(record, seed),
        )
        for records in held
    ]
    turns = chain.from_iterable(zip_longest(*ranked))
    return list(islice(filter(None, turns), count))


def _is_prompt(text: str, known: set[int], least_chars: int) -> bool:
    return len(normalised(text)) >= least_chars and _shared(text, known) < MAX_SHARED


def _text_rank(record: dict[str, str], seed: int) -> bytes:
    return hashlib.sha256(f"{seed}/{record['text']}".encode()).digest()


def _shingles(text: str) -> set[int]:
    words = text.split()
    spans = range(max(1, len(words) - SHINGLE_WORDS + 1))
    return {
        int.from_bytes(
            hashlib.blake2b(
                " ".join(words[i : i + SHINGLE_WORDS]).encode(), digest_size=8
            ).digest()
        )
        for i in spans
    }


def _shared(text: str, known: set[int]) -> float:
    shingles = _shingles(text)
    return len(shingles & known) / len(shingles)


def _reader(path: Path) -> Callable[[], str]:
    def read() -> str:
        content = path.read_bytes()
        return (gzip.decompress(content) if path.suffix == ".gz" else content).decode()

    return read


def _manual_reader(path: Path) -> Callable[[], str]:
    def read() -> str:
        env = {**os.environ, "MANWIDTH": "80", "LC_ALL": "C.UTF-8"}
        command = ["man", "--local-file", str(path)]
        # A page with a warning is still a page.
        return subprocess.run(
            command, env=env, capture_output=True, check=False
        ).stdout.decode()

    return read


def _download(package: str, folder: Path) -> Path:
    for name in (package, *_dependencies(package)):
        # A documentation package may be an empty one that names the version's.
        subprocess.run(["apt-get", "download", "-qq", name], cwd=folder, check=True)
        (archive,) = folder.glob("*.deb")
        if archive.stat().st_size > 50_000:
            return archive
        archive.unlink()
    raise SystemExit(f"debian_corpus: found no documentation in package {package}")


def _dependencies(package: str) -> list[str]:
    command = ["apt-cache", "depends", "--important", package]
    lines = subprocess.run(
        command, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return [
        line.split(": ")[1] for line in lines if "Depends: " in line and "<" not in line
    ]


def _write(records: Iterable[dict[str, str]], path: Path) -> None:
    with replacing(path) as file, file.open("w", encoding="utf-8") as out:
        for record in records:
            out.write(json.dumps(record, ensure_ascii=False) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Make a corpus of three domains, and prompts."
    )
    parser.add_argument(
        "out", type=Path, help="folder of corpus.jsonl and prompts.jsonl"
    )
    parser.add_argument(
        "--passages", type=int, default=7000, help="of each domain, to index"
    )
    parser.add_argument("--chars", type=int, default=800, help="of a passage, at most")
    parser.add_argument(
        "--prompts", type=int, default=40, help="of each domain, to evaluate on"
    )
    parser.add_argument(
        "--tuning", type=int, default=30, help="of each domain, to tune on"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    unpacked = options.out / "packages"
    unpack((*MANUAL_PACKAGES, *TEXT_PACKAGES), unpacked)
    domains = {
        "python": python_documents(),
        "man": manual_documents(unpacked),
        "docs": text_documents(unpacked),
    }
    split = {
        name: split_domain(documents, options.passages, options.chars, options.seed)
        for name, documents in domains.items()
    }
    corpus = [record for stored, _ in split.values() for record in stored]
    known = set().union(*(_shingles(record["text"]) for record in corpus))
    prompts: list[dict[str, str]] = []
    tuning: list[dict[str, str]] = []
    for name, (stored, held) in split.items():
        count = options.tuning + options.prompts
        chosen = choose_prompts(held, known, count, options.chars // 2, options.seed)
        print(
            f"{name}: {len(stored)} passages, {len(held)} documents held out, {len(chosen)} prompts"
        )
        tuning += chosen[: options.tuning]
        prompts += chosen[options.tuning :]
    _write(corpus, options.out / "corpus.jsonl")
    _write(tuning, options.out / "tuning.jsonl")
    _write(prompts, options.out / "prompts.jsonl")


if __name__ == "__main__":
    main()
