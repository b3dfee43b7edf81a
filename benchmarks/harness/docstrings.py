"""Tasks of the harness over docstrings of NumPy and SciPy, and the texts for their datastore.

    python benchmarks/harness/docstrings.py FILE.jsonl     writes what to index

A document in docstrings.jsonl is the beginning of a docstring. Its choices are what comes next, and
what comes next in the three documents most like it. No text to index belongs to a document or holds
a choice.
"""

import argparse
import importlib
import inspect
import json
import pkgutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import DatasetDict

DOCUMENTS = Path(__file__).with_suffix(".jsonl")
LIBRARIES = ("numpy", "scipy")
# Characters of a text: as many as the embedder reads.
TEXT = 1000


def load(**_metadata: Any) -> "DatasetDict":
    """The documents, for the harness, which passes arguments of the model."""
    from datasets import Dataset, DatasetDict

    return DatasetDict({"test": Dataset.from_list(_documents())})


def _documents() -> list[dict[str, Any]]:
    return [json.loads(line) for line in DOCUMENTS.read_text("utf-8").splitlines()]


def _texts() -> Iterator[str]:
    documents = _documents()
    names = {document["name"] for document in documents}
    choices = [choice for document in documents for choice in document["choices"]]
    for name, text in _docstrings():
        if name not in names and not any(choice in text for choice in choices):
            yield f"{name}\n\n{text}"[:TEXT]


def _docstrings() -> Iterator[tuple[str, str]]:
    """Name and docstring of what the libraries' public modules export, each docstring once."""
    seen: set[str] = set()
    for library in LIBRARIES:
        for module in _modules(library):
            for name in sorted(getattr(module, "__all__", [])):
                exported = getattr(module, name, None)
                text = inspect.getdoc(exported) if callable(exported) else None
                # All distributions have one docstring but for their names.
                if text and text not in seen and "instance of the `rv_" not in text:
                    seen.add(text)
                    yield f"{module.__name__}.{name}", text


def _modules(library: str) -> Iterator[ModuleType]:
    package = importlib.import_module(library)
    yield package
    for module in pkgutil.iter_modules(package.__path__, f"{library}."):
        if not module.name.split(".")[-1].startswith(("_", "tests")):
            try:
                yield importlib.import_module(module.name)
            except ImportError:  # what it needs is not installed
                continue


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    file = parser.parse_args().file
    warnings.simplefilter("ignore")
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in _texts()]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(lines)} in {file}")


if __name__ == "__main__":
    main()
