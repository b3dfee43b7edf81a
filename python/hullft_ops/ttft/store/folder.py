"""Which files of a folder are the user's texts."""

import os
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from hullft_ops.ttft.store.format import JOURNAL_FILE, MANIFEST_FILE, OWN_DIRECTORIES


def visible_files(folder: Path, include: Iterable[str], exclude: Iterable[str]) -> list[Path]:
    """Every file below the folder, which may be hidden itself, in the order of their paths.

    Symbolic links, hidden files and folders, and datastores are left out; so are files that no
    pattern of ``include`` matches, if there are any, or that one of ``exclude`` does.
    """
    wanted, unwanted = _patterns(include), _patterns(exclude)
    files = _walk(folder, folder, unwanted)
    return sorted(path for path in files if not wanted or _matches(folder, path, wanted))


def _walk(top: Path, folder: Path, unwanted: list[str]) -> Iterator[Path]:
    entries = [entry for entry in os.scandir(folder) if not entry.is_symlink()]
    if {MANIFEST_FILE, JOURNAL_FILE} & {entry.name for entry in entries} and any(
        OWN_DIRECTORIES.fullmatch(entry.name) for entry in entries if entry.is_dir()
    ):
        # A datastore, of which no file is the user's.
        return
    for entry in entries:
        path = folder / entry.name
        if entry.name.startswith(".") or _matches(top, path, unwanted):
            continue
        if entry.is_dir():
            yield from _walk(top, path, unwanted)
        elif entry.is_file():
            yield path


def _patterns(globs: Iterable[str]) -> list[str]:
    return [glob.removeprefix("./").removeprefix("**/").rstrip("/") for glob in globs]


def _matches(folder: Path, path: Path, patterns: list[str]) -> bool:
    """Whether a pattern matches the path, that of a folder above it, or the name of one of them."""
    if not patterns:
        return False
    parts = path.relative_to(folder).parts
    tried = {*parts, *("/".join(parts[:count]) for count in range(1, len(parts) + 1))}
    return any(fnmatchcase(part, pattern) for pattern in patterns for part in tried)
