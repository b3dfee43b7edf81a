"""Tasks of the harness over docstrings of NumPy and SciPy, and the texts for their datastore.

    python benchmarks/harness/docstrings.py documents          writes docstrings.jsonl beside this
    python benchmarks/harness/docstrings.py texts FILE.jsonl   what to index

A document is the beginning of a docstring. Its choices are what comes next, and what comes next in
the three documents most like it. No text to index belongs to a document or holds a choice.
"""

import argparse
import importlib
import inspect
import json
import pkgutil
import random
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import DatasetDict

DOCUMENTS = Path(__file__).with_suffix(".jsonl")
LIBRARIES = ("numpy", "scipy")
COUNT, CHOICES = 100, 4
# Characters. A text is as long as the embedder reads.
LEAST, CONTEXT, ANSWER, TEXT = 600, 300, 120, 1000


def load(**_metadata: Any) -> "DatasetDict":
    """The documents, for the harness, which passes arguments of the model."""
    from datasets import Dataset, DatasetDict

    return DatasetDict({"test": Dataset.from_list(_documents())})


def _documents() -> list[dict[str, Any]]:
    return [json.loads(line) for line in DOCUMENTS.read_text("utf-8").splitlines()]


def _docstrings() -> Iterator[tuple[str, str]]:
    """Name and docstring of what the libraries' public modules export, each docstring once."""
    seen: set[str] = set()
    for library in LIBRARIES:
        package = importlib.import_module(library)
        found = pkgutil.iter_modules(package.__path__, f"{library}.")
        names = (
            m.name
            for m in found
            if not m.name.split(".")[-1].startswith(("_", "tests"))
        )
        for module in [package, *filter(None, map(_imported, names))]:
            for name in sorted(getattr(module, "__all__", [])):
                exported = getattr(module, name, None)
                text = inspect.getdoc(exported) if callable(exported) else None
                # All distributions have one docstring but for their names.
                if text and text not in seen and "instance of the `rv_" not in text:
                    seen.add(text)
                    yield f"{module.__name__}.{name}", text


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:  # what it needs is not installed
        return None


def _documents_of(docstrings: list[tuple[str, str]]) -> Iterator[dict[str, Any]]:
    from hullft_ops.ttft import load_embedder

    long = [(name, text) for name, text in docstrings if len(text) >= LEAST]
    parts = []
    for name, text in random.Random(0).sample(long, COUNT):
        whole = f"{name}\n\n{text}"
        end = whole.index("\n", CONTEXT)
        answer = whole[end + 1 : end + ANSWER].rsplit(maxsplit=1)[0]
        parts.append((name, whole[:end].rstrip(), answer))
    vectors = load_embedder().encode([context for _, context, _ in parts])
    order = random.Random(1)
    for place, (name, context, answer) in enumerate(parts):
        nearest = (vectors @ vectors[place]).argsort()[::-1].tolist()
        others = [parts[i][2] for i in nearest if i != place and parts[i][2] != answer]
        choices = [answer, *others[: CHOICES - 1]]
        order.shuffle(choices)
        place = choices.index(answer)
        yield {"name": name, "context": context, "choices": choices, "answer": place}


def _texts(docstrings: list[tuple[str, str]]) -> Iterator[str]:
    documents = _documents()
    names = {document["name"] for document in documents}
    choices = [choice for document in documents for choice in document["choices"]]
    for name, text in docstrings:
        if name not in names and not any(choice in text for choice in choices):
            yield f"{name}\n\n{text}"[:TEXT]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("documents")
    commands.add_parser("texts").add_argument("file", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    docstrings = list(_docstrings())
    if arguments.command == "documents":
        file, rows = DOCUMENTS, list(_documents_of(docstrings))
    else:
        file, rows = arguments.file, [{"text": text} for text in _texts(docstrings)]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(rows)} in {file}")


if __name__ == "__main__":
    main()
