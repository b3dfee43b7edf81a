"""Outputs: checked before the work, whole when they appear, and nothing of the user's deleted."""

import fcntl
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from hullft_ops.ttft.errors import first_line

# What the errors of safetensors and of torch's writer say.
_WRITING = ("Error while serializing: I/O error", "inline_container.cc")
# In the hidden folder of an unfinished output.
LOCK = "hullft_ops.lock"


def check_output(
    path: str | Path,
    *,
    kind: Literal["folder", "rows"] = "folder",
    inputs: Iterable[str | Path | None] = (),
) -> None:
    """Refuse a bad output before the work. Inputs that are None do not matter.

    A folder has a free name, or is empty. "rows" is a file to add to; the caller checks what it
    holds.

    Raises:
        ValueError: ``path`` is one of ``inputs``, or holds one.
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
    if path.is_symlink() or (path.exists() and not (path.is_dir() or path.is_file())):
        raise FileExistsError(f"output {path} is neither a regular file nor a folder")
    if not path.exists():
        # A dangling link has no parent folder either.
        parent = next(filter(os.path.lexists, path.absolute().parents))
        if not (parent.is_dir() and os.access(parent, os.W_OK)):
            raise NotADirectoryError(f"output {path}: cannot write to {parent}")
    elif kind == "rows":
        if path.is_dir():
            raise FileExistsError(f"output {path} is a folder, must be a file")
    elif path.is_file() or any(path.iterdir()):
        raise FileExistsError(
            f"output {path} exists: remove it first, or choose another name"
        )


@contextmanager
def new_folder(
    path: str | Path,
    files: Sequence[str],
    *,
    resume: bool = False,
) -> Iterator[Path]:
    """Yield a folder to fill. At the end of the block it appears at ``path``, by a rename.

    Until then it is hidden beside ``path``, always under one name. The next call goes on with what
    a kill leaves there, or removes it.

    Args:
        files: patterns of the files that the block may write, by their path in the folder.
        resume: keep what was written before an exception or a kill for the next call.

    Raises:
        FileExistsError: as `check_output`; or the hidden folder is a link or another user's, or
            holds other files.
        ValueError: another process fills the folder.
    """
    path = Path(path).absolute()
    check_output(path)
    partial = unfinished(path)
    partial.mkdir(parents=True, exist_ok=True)
    _check_hidden(partial, [*files, LOCK])
    with _locked(partial / LOCK, path), named_in_errors(partial):
        try:
            if not resume:
                remove_files(partial, files)
            yield partial
            partial.rename(path)
            (path / LOCK).unlink()
        except BaseException:
            remove_files(partial, [LOCK] if resume else [*files, LOCK])
            raise


def unfinished(path: Path) -> Path:
    """Where an output is until it is whole."""
    return path.with_name(f".{path.name}.hullft_ops.partial")


@contextmanager
def named_in_errors(path: Path) -> Iterator[None]:
    """Let the errors of a full disk, for which the system names no file, name ``path``.

    Those of safetensors and of `torch.save`, which are not OSErrors, become some.
    """
    try:
        yield
    except OSError as error:
        if error.errno and error.filename is None:
            error.filename = str(path)
        raise
    except Exception as error:
        if any(words in str(error) for words in _WRITING):
            raise OSError(f"cannot write to {path}: {first_line(error)}") from error
        raise


def _check_hidden(partial: Path, files: Sequence[str]) -> None:
    status = partial.lstat()
    if stat.S_ISLNK(status.st_mode) or status.st_uid != os.geteuid():
        raise FileExistsError(f"{partial} is a link or another user's: remove it")
    for entry in partial.rglob("*"):
        name = entry.relative_to(partial).as_posix()
        is_ours = entry.is_dir() or _matches(name, files)
        if entry.is_symlink() or not is_ours:
            raise FileExistsError(
                f"{partial} holds {name}, which hullft_ops did not write"
            )


@contextmanager
def _locked(file: Path, path: Path) -> Iterator[None]:
    with file.open("a") as content:
        try:
            fcntl.flock(content, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"output {path}: another process writes it") from None
        yield


def remove_output(folder: Path, files: Sequence[str]) -> None:
    """Remove the files of an output, finished or not, unless a process writes it."""
    with suppress(ValueError), _locked(folder / LOCK, folder):
        remove_files(folder, [*files, LOCK])


def remove_files(folder: Path, files: Sequence[str]) -> None:
    """Remove the files in a folder that match a pattern, and folders that are empty then."""
    # What a folder holds comes before it.
    for entry in [*sorted(folder.rglob("*"), reverse=True), folder]:
        if entry.is_dir():
            with suppress(OSError):
                entry.rmdir()
        elif _matches(entry.relative_to(folder).as_posix(), files):
            entry.unlink()


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
