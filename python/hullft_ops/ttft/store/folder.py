"""Which files of a folder are the user's texts."""

import os
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NoReturn

from hullft_ops.ttft.store.format import JOURNAL_FILE, MANIFEST_FILE, OWN_DIRECTORIES


def visible_files(folder: Path, include: Iterable[str], exclude: Iterable[str]) -> list[Path]:
    """Every file below the folder, in the order of their paths.

    Symbolic links, hidden files and folders, and datastores are left out.

    Args:
        folder: may be hidden itself.
        include: patterns, one of which must match; none for all files.
        exclude: patterns, none of which may match.

    Raises:
        OSError: a folder cannot be read.
    """
    wanted, unwanted = _patterns(include), _patterns(exclude)
    return sorted(
        path
        for path in _walk(folder, unwanted)
        if path.is_file()
        and not path.is_symlink()
        and (not wanted or _matches(folder, path, wanted))
        and not _matches(folder, path, unwanted)
    )


def _walk(folder: Path, unwanted: list[str]) -> Iterator[Path]:
    for root, folders, names in os.walk(folder, onerror=_raise):
        if {MANIFEST_FILE, JOURNAL_FILE} & {*names} and any(
            map(OWN_DIRECTORIES.fullmatch, folders)
        ):
            # A datastore, of which no file is the user's.
            folders.clear()
            continue
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and not _matches(folder, Path(root, name), unwanted)
        ]
        yield from (Path(root, name) for name in names if not name.startswith("."))


def _patterns(globs: Iterable[str]) -> list[str]:
    return [glob.removeprefix("./").removeprefix("**/").rstrip("/") for glob in globs]


def _matches(folder: Path, path: Path, patterns: list[str]) -> bool:
    """Whether a pattern matches the path, that of a folder above it, or the name of one of them."""
    if not patterns:
        return False
    parts = path.relative_to(folder).parts
    tried = {*parts, *("/".join(parts[:count]) for count in range(1, len(parts) + 1))}
    return any(fnmatchcase(part, pattern) for pattern in patterns for part in tried)


def _raise(error: OSError) -> NoReturn:
    raise error
