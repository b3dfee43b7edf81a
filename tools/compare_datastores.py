"""Whether two datastores hold the same: texts, metadata, order, vectors, counts, search.

    python tools/compare_datastores.py STORE OTHER

prints a line for each and exits with 1 where any differs. For a datastore whose writing was
interrupted against one whose writing was not.
"""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from hullft_ops.ttft import Datastore

# Names that are drawn anew for each datastore.
_OWN_NAMES = ("data", "file")
_ROWS = 1000


def compare(store: Datastore, other: Datastore) -> dict[str, str]:
    """What differs, by what it is; an empty string where nothing does."""
    return {
        "count": _unequal(len(store), len(other)),
        "columns": _unequal(store.rows.column_names, other.rows.column_names),
        "texts and metadata, in order": _rows(store, other),
        "embeddings, bit for bit": _embeddings(store, other),
        "manifest, names of files aside": _manifest(store, other),
    }


def _unequal(value: object, other: object) -> str:
    return "" if value == other else f"{value!r} against {other!r}"


def _rows(store: Datastore, other: Datastore) -> str:
    for start in range(0, min(len(store), len(other)), _ROWS):
        stop = min(start + _ROWS, len(store), len(other))
        pairs = zip(
            store.rows.select(range(start, stop)),
            other.rows.select(range(start, stop)),
            strict=True,
        )
        for position, (row, others) in enumerate(pairs, start):
            if row != others:
                return f"row {position}: {row!r:.200} against {others!r:.200}"
    return _unequal(len(store), len(other))


def _embeddings(store: Datastore, other: Datastore) -> str:
    own, others = store.embeddings.numpy(), other.embeddings.numpy()
    if own.shape != others.shape:
        return f"shape {own.shape} against {others.shape}"
    rows = (own.view(np.uint32) != others.view(np.uint32)).any(axis=1)
    if not rows.any():
        return ""
    return f"{rows.sum()} of {len(rows)} vectors, by {np.abs(own - others).max():.2g} at most"


def _manifest(store: Datastore, other: Datastore) -> str:
    own, others = (_without_names(asdict(s.manifest)) for s in (store, other))
    differing = [name for name in own if own[name] != others[name]]
    return "; ".join(
        f"{name}: {_unequal(own[name], others[name])}" for name in differing
    )


def _without_names(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_names(v) for k, v in value.items() if k not in _OWN_NAMES}
    if isinstance(value, tuple | list):
        return [_without_names(item) for item in value]
    return value


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare two datastores.")
    parser.add_argument("store", type=Path)
    parser.add_argument("other", type=Path)
    options = parser.parse_args()
    # Opening compares every file with its checksum.
    store, other = Datastore.open(options.store), Datastore.open(options.other)
    found = compare(store, other)
    print(f"{options.store}: {len(store)} texts, {options.other}: {len(other)} texts")
    for what, difference in found.items():
        print(f"  {what}: {'differs: ' + difference if difference else 'the same'}")
    raise SystemExit(any(found.values()))


if __name__ == "__main__":
    main()
