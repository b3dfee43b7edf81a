"""Outputs: checked before the work, whole when they appear, and nothing of the user's deleted."""

import fcntl
import json
import os
import stat
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Literal

# In every folder that we write; it lists the files.
MARKER = "hullft_ops.json"


def check_output(
    path: str | Path,
    *,
    kind: Literal["folder", "file", "rows"] = "folder",
    inputs: Iterable[str | Path | None] = (),
    overwrite: bool = False,
) -> None:
    """Refuse a bad output before the work. Inputs that are None do not matter.

    A free name is good, and an empty folder for one. With ``overwrite`` so are a folder that holds
    only files we wrote, and a regular file outside of every input. "rows" is a file to add to; the
    caller checks what it holds.

    Raises:
        ValueError: ``path`` is one of ``inputs``, holds one, or is a file in one.
        FileExistsError: something else is there.
        NotADirectoryError: nothing can be created there.
    """
    path = Path(path)
    for source in inputs:
        if source is None:
            continue
        resolved = Path(source).resolve()
        if resolved.exists() and path.resolve() in (resolved, *resolved.parents):
            raise ValueError(f"output {path} is the input {source}, or holds it")
        if kind == "file" and path.is_file() and resolved in path.resolve().parents:
            raise ValueError(f"output {path} is a file of the input {source}")
    if path.is_symlink() or (path.exists() and not (path.is_dir() or path.is_file())):
        raise FileExistsError(f"output {path} is neither a regular file nor a folder")
    if not path.exists():
        # A dangling link has no parent folder either.
        parent = next(filter(os.path.lexists, path.absolute().parents))
        if not (parent.is_dir() and os.access(parent, os.W_OK)):
            raise NotADirectoryError(f"output {path}: cannot write to {parent}")
    elif kind == "folder":
        _check_folder(path, overwrite=overwrite)
    elif path.is_dir():
        raise FileExistsError(f"output {path} is a folder, must be a file")
    elif kind == "file" and not overwrite:
        raise FileExistsError(f"output {path} exists, and --overwrite is not set")


def _check_folder(path: Path, *, overwrite: bool) -> None:
    if path.is_file():
        raise FileExistsError(f"output {path} is a file, must be a folder")
    if not overwrite and any(path.iterdir()):
        raise FileExistsError(f"output {path} exists, and --overwrite is not set")
    _check_names(path, set(_files(path)) - {MARKER, *_listed(path)})


def _check_names(folder: Path, others: Collection[str]) -> None:
    if others:
        raise FileExistsError(
            f"output {folder} holds {min(others)}, which hullft_ops did not write"
        )


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a file to write. At the end of the block it takes the place of ``path``.

    Raises as `check_output` with ``overwrite``, and as `new_folder`.
    """
    check_output(path, kind="file", overwrite=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _beside(path, "partial")
    with _locked(partial, path):
        try:
            yield partial
        except BaseException:
            partial.unlink()
            raise
        partial.replace(path)


@contextmanager
def new_folder(
    path: str | Path,
    files: Sequence[str],
    *,
    overwrite: bool = False,
    resume: bool = False,
) -> Iterator[Path]:
    """Yield a folder to fill. At the end of the block it appears at ``path``, by a rename.

    Until then it is hidden beside ``path``, always under one name: what a kill leaves there, the
    next call removes.

    Args:
        files: patterns of the files that the block may write, by their path in the folder.
        resume: keep what was written before an exception or a kill for the next call.

    Raises:
        FileExistsError: as `check_output`; or the hidden folder is not what a call has left.
        ValueError: another process fills the folder.
    """
    path = Path(path).absolute()
    check_output(path, overwrite=overwrite)
    partial, old = _beside(path, "partial"), _beside(path, "old")
    partial.mkdir(parents=True, exist_ok=True)
    names = _matching(partial, [*files, MARKER])
    # It begins with the list.
    _check_names(partial, set(_files(partial)) - set(names if MARKER in names else []))
    with _locked(partial / MARKER, path) as marker:
        try:
            if old.exists():
                _put_back(old, path)
                check_output(path, overwrite=overwrite)
            if not resume:
                _remove(partial, _matching(partial, files))
            yield partial
            marker.truncate(0)
            json.dump(_matching(partial, files), marker)
            marker.flush()
            # The user may have put something there meanwhile.
            check_output(path, overwrite=overwrite)
            if path.exists():
                path.rename(old)
            partial.rename(path)
        except BaseException:
            names = _matching(partial, [*files, MARKER])
            if not resume or names == [MARKER]:
                _remove(partial, names)
            raise
        if old.exists():
            _put_back(old, path)


def _beside(path: Path, kind: str) -> Path:
    """The place of our file or folder, which is no link and no other user's."""
    place = path.with_name(f".{path.name}.hullft_ops.{kind}")
    if os.path.lexists(place):
        status = place.lstat()
        if stat.S_ISLNK(status.st_mode) or status.st_uid != os.geteuid():
            raise FileExistsError(f"{place} is a link or another user's: remove it")
    return place


@contextmanager
def _locked(file: Path, path: Path) -> Iterator[IO[str]]:
    with file.open("a") as content:
        try:
            fcntl.flock(content, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"output {path}: another process writes it") from None
        yield content


def _put_back(old: Path, path: Path) -> None:
    """Finish a replacement, or undo one that a kill has cut in two."""
    if path.exists():
        _remove(old, [*_listed(old), MARKER])
    else:
        old.rename(path)


def _remove(folder: Path, names: Iterable[str]) -> None:
    """Remove these files, and folders that are empty then."""
    for name in names:
        (folder / name).unlink(missing_ok=True)
    for entry in [*sorted(folder.rglob("*"), reverse=True), folder]:
        with suppress(OSError):
            entry.rmdir()


def _listed(folder: Path) -> list[str]:
    """The files that we wrote; none if their list is missing or damaged."""
    names = None
    with suppress(OSError, ValueError):
        names = json.loads((folder / MARKER).read_bytes())
    return [
        name for name in _files(folder) if isinstance(names, list) and name in names
    ]


def _matching(folder: Path, patterns: Sequence[str]) -> list[str]:
    """The files in the folder that match a pattern, without links."""
    return [
        name
        for name in _files(folder)
        if any(fnmatchcase(name, pattern) for pattern in patterns)
        and not (folder / name).is_symlink()
    ]


def _files(folder: Path) -> list[str]:
    """Files in the folder at any depth, links too."""
    return sorted(
        entry.relative_to(folder).as_posix()
        for entry in folder.rglob("*")
        if entry.is_symlink() or not entry.is_dir()
    )
