"""Text of three domains: the documentation of Linux, Perl and C++ as Debian packages ship it.

    apt-get install linux-doc-6.12 perl-doc cppreference-doc-en-html
    python -m benchmarks.documentation --out documentation

writes ``store.jsonl``, a passage a line, and ``prompts.jsonl``, passages of documents that are not
in the store. ``--root`` names a folder into which the packages were unpacked (``dpkg -x``).
"""

import argparse
import gzip
import hashlib
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

from hullft_ops.ttft.evaluation.corpus import Document, normalised

PASSAGES_A_DOMAIN = 2700
HELD_OUT_ONE_IN = 8
SHORTEST_PROMPT = 400
# A prompt whose runs of five words stand in the store more often than this repeats it.
MOST_SHARED = 0.2
RUN = 5

_KERNEL = "usr/share/doc/linux-doc-6.12/Documentation"
_PERL = "usr/share/perl"
_CPP = "usr/share/cppreference/doc/html/en/cpp"
# Translations repeat each other; the folders of media and ABI are lists of names.
_LEFT_OUT = ("translations", "media", "ABI", "devicetree", "output")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=Path("/"))
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    store, prompts = split(documents(arguments.root))
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, rows in (("store", store), ("prompts", prompts)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (arguments.out / f"{name}.jsonl").write_text(lines)
        print(
            f"{name}.jsonl: {len(rows)} passages, {hashlib.sha256(lines.encode()).hexdigest()}"
        )


def documents(root: Path) -> dict[str, list[Document]]:
    """The documents of each domain, in an order that looks random and is always the same."""
    found = {
        "kernel": list(_kernel(root)),
        "perl": list(_perl(root)),
        "cpp": list(_cpp(root)),
    }
    for name, texts in found.items():
        if not texts:
            raise SystemExit(f"no documentation of {name} under {root}")
        texts.sort(key=lambda document: document.rank)
    return found


def split(
    found: dict[str, list[Document]],
) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Rows of the store, and of the prompts: one passage of each held-out document."""
    store, prompts = [], []
    seen: set[str] = set()
    for domain, texts in found.items():
        kept = [d for number, d in enumerate(texts) if number % HELD_OUT_ONE_IN]
        rows: list[dict[str, str]] = []
        for document in kept:
            for text in document.passages():
                if len(rows) < PASSAGES_A_DOMAIN and normalised(text) not in seen:
                    seen.add(normalised(text))
                    rows.append(
                        {"text": text, "domain": domain, "source": document.name}
                    )
        store += rows
    runs = {run for row in store for run in _runs(row["text"])}
    for domain, texts in found.items():
        for document in texts[::HELD_OUT_ONE_IN]:
            fresh = [text for text in document.passages() if _is_fresh(text, runs)]
            if fresh:
                text = min(
                    fresh, key=lambda text: hashlib.sha256(text.encode()).digest()
                )
                prompts.append(
                    {"text": text, "domain": domain, "source": document.name}
                )
    return store, prompts


def _is_fresh(text: str, runs: set[tuple[str, ...]]) -> bool:
    own = list(_runs(text))
    shared = sum(run in runs for run in own)
    return (
        len(text) >= SHORTEST_PROMPT and bool(own) and shared <= MOST_SHARED * len(own)
    )


def _runs(text: str) -> Iterator[tuple[str, ...]]:
    words = text.split()
    return zip(*(words[start:] for start in range(RUN)), strict=False)


def _kernel(root: Path) -> Iterator[Document]:
    base = root / _KERNEL
    for path in base.rglob("*.rst*"):
        name = path.relative_to(base)
        if not set(name.parts) & set(_LEFT_OUT):
            content = path.read_bytes()
            content = gzip.decompress(content) if path.suffix == ".gz" else content
            yield Document(
                "kernel", name.as_posix(), content.decode("utf-8", "replace")
            )


def _perl(root: Path) -> Iterator[Document]:
    for path in (root / _PERL).rglob("*.pod"):
        # Lists of changes, and a table of contents.
        if not path.stem.startswith(("perl5", "perltoc")):
            text = path.read_text(encoding="utf-8", errors="replace")
            yield Document("perl", path.name, text)


def _cpp(root: Path) -> Iterator[Document]:
    base = root / _CPP
    for path in base.rglob("*.html"):
        text = _Page.text_of(path.read_text(encoding="utf-8", errors="replace"))
        if len(text) >= SHORTEST_PROMPT:
            yield Document("cpp", path.relative_to(base).as_posix(), text)


class _Page(HTMLParser):
    """Collects a page's text, without its navigation bar and its footer."""

    _BLOCKS = (
        "p",
        "div",
        "tr",
        "li",
        "h1",
        "h2",
        "h3",
        "h4",
        "pre",
        "br",
        "dd",
        "dt",
        "table",
    )
    _HIDDEN = ("script", "style")

    def __init__(self) -> None:
        super().__init__()
        self._pieces: list[str] = []
        self._hidden = 0
        # Elements that are open within the navigation bar, itself included.
        self._bar = 0

    @classmethod
    def text_of(cls, html: str) -> str:
        page = cls()
        page.feed("<body" + html.split("<body", 1)[-1])
        lines = (
            re.sub(r"[ \t\xa0]+", " ", line)
            for line in "".join(page._pieces).splitlines()
        )
        text = "\n".join(line.rstrip() for line in lines if line.strip())
        return text.split("Retrieved from")[0]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._hidden += tag in self._HIDDEN
        if tag == "div" and (
            self._bar or "t-navbar" in (dict(attrs).get("class") or "")
        ):
            self._bar += 1
        if tag in self._BLOCKS:
            self._pieces.append("\n")

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in self._HIDDEN
        self._bar -= tag == "div" and self._bar > 0
        if tag in self._BLOCKS:
            self._pieces.append("\n")

    def handle_data(self, data: str) -> None:
        if not (self._hidden or self._bar):
            self._pieces.append(data)


if __name__ == "__main__":
    main()
