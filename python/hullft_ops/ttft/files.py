"""Outputs: checked before the work, whole when they appear, and nothing of the user's deleted."""

import fcntl
import hashlib
import os
import shutil
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

# What the errors of safetensors and of torch's writer say.
_WRITING = ("Error while serializing: I/O error", "inline_container.cc")


def digest_of(*files: Path) -> str:
    """SHA-256 over the contents of files, in hexadecimal digits."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as content:
            hashlib.file_digest(content, lambda: digest)
    return digest.hexdigest()


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
def new_folder(path: str | Path, *, resume: bool = False) -> Iterator[Path]:
    """Yield a folder to fill. At the end of the block it appears at ``path``, by a rename.

    Until then it is hidden beside ``path``, always under one name.

    Args:
        resume: keep what was written before an exception or a kill for the next call.

    Raises:
        FileExistsError: as `check_output`.
        ValueError: another process fills the folder.
    """
    path = Path(path).absolute()
    check_output(path)
    partial = path.with_name(f".{path.name}.hullft_ops.partial")
    partial.mkdir(parents=True, exist_ok=True)
    with locked(partial, path), named_in_errors(partial):
        try:
            if not resume:
                _empty(partial)
            yield partial
            partial.rename(path)
        except BaseException:
            if not resume:
                _empty(partial)
            # Nothing may be in it yet.
            with suppress(OSError):
                partial.rmdir()
            raise


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


@contextmanager
def named_in_errors(path: Path) -> Iterator[None]:
    """Let the errors of a full disk, for which the system names no file, name ``path``.

    SQLite, safetensors and `torch.save` raise errors of their own, which become OSErrors.
    """
    try:
        yield
    except OSError as error:
        if error.errno and error.filename is None:
            error.filename = str(path)
        raise
    except Exception as error:
        is_database = isinstance(error, sqlite3.OperationalError)
        if is_database or any(words in str(error) for words in _WRITING):
            reason = str(error).splitlines()[0]
            raise OSError(f"cannot write to {path}: {reason}") from error
        raise


@contextmanager
def locked(folder: Path, path: Path) -> Iterator[None]:
    """Nobody else is in such a block for the folder meanwhile. ValueError, which names ``path``, if
    somebody is."""
    # A link would have what it leads to emptied.
    descriptor = os.open(folder, os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise ValueError(f"output {path}: another process writes it") from None
    finally:
        os.close(descriptor)
