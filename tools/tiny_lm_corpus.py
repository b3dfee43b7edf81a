"""The tiny model's training text: Python's standard library and Debian's manual pages."""

import hashlib
import json
import subprocess
import sysconfig
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

MAN_ROOT = Path("/usr/share/man")
HELD_OUT_PERCENT = 3
# Tests and character-map tables are large, and unlike the code a reader would write.
SKIPPED_FOLDERS = {
    "site-packages",
    "test",
    "tests",
    "idle_test",
    "encodings",
    "__pycache__",
}


@dataclass(frozen=True)
class Document:
    domain: str
    name: str
    text: str

    @property
    def held_out(self) -> bool:
        digest = hashlib.sha256(f"{self.domain}/{self.name}".encode()).digest()
        return int.from_bytes(digest[:4], "big") % 100 < HELD_OUT_PERCENT


def _python_documents() -> Iterator[Document]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if SKIPPED_FOLDERS.isdisjoint(name.parts):
            try:
                yield Document(
                    "python", name.as_posix(), path.read_text(encoding="utf-8")
                )
            except UnicodeDecodeError:
                continue


def _render(page: Path) -> str:
    mandoc = ["mandoc", "-T", "utf8", "-O", "width=80", str(page)]
    rendered = subprocess.run(mandoc, capture_output=True, check=False).stdout
    plain = subprocess.run(
        ["col", "-bx"], input=rendered, capture_output=True, check=True
    ).stdout
    return plain.decode("utf-8", errors="replace")


def _man_documents() -> Iterator[Document]:
    # Aliases are links or one-line `.so` pages, and would repeat the page they name.
    pages = [
        page
        for page in sorted(MAN_ROOT.glob("man*/*.gz"))
        if not page.is_symlink() and page.stat().st_size > 120
    ]
    with ThreadPoolExecutor(2) as pool:
        for page, text in zip(pages, pool.map(_render, pages), strict=True):
            yield Document("man", page.relative_to(MAN_ROOT).as_posix(), text)


def load_corpus() -> list[Document]:
    """Every document once: a text that occurs twice could be trained on and held out."""
    seen: set[str] = set()
    documents = []
    for document in (*_python_documents(), *_man_documents()):
        if document.text.strip() and document.text not in seen:
            seen.add(document.text)
            documents.append(document)
    return documents


def cached_corpus(path: Path) -> list[Document]:
    """Installing a package adds manual pages, and would change the text under a resumed run."""
    if not path.exists():
        temporary = path.with_suffix(".tmp")
        temporary.write_text(
            json.dumps([asdict(document) for document in load_corpus()])
        )
        temporary.replace(path)
    return [Document(**fields) for fields in json.loads(path.read_text())]
