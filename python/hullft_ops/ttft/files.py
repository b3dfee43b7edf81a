"""Outputs: checked before the work, whole when they appear, and nothing of the user's deleted."""

import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal
from uuid import uuid4

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
        # Of a link to nothing, too, there is no folder to write to.
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
    ours = None
    with suppress(OSError, ValueError, RecursionError):
        ours = json.loads((path / MARKER).read_bytes())
    others = set(_files(path)) - {MARKER}
    # Nothing in a folder is ours if the list is missing or damaged.
    if isinstance(ours, list):
        others -= {str(name) for name in ours}
    if others:
        raise FileExistsError(
            f"output {path} holds {min(others)}, which hullft_ops did not write"
        )


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a file to write. At the end of the block it takes the place of ``path``.

    Raises as `check_output` with ``overwrite``.
    """
    check_output(path, kind="file", overwrite=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.partial")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(
    path: str | Path, *, overwrite: bool = False, resume: bool = False
) -> Iterator[Path]:
    """Yield a folder to fill. At the end of the block it appears at ``path``, by a rename.

    With ``resume``, files written before an exception or a kill are there the next time. Raises as
    `check_output`, and ValueError while another process fills the same folder.
    """
    path = Path(path).absolute()
    check_output(path, overwrite=overwrite)
    name = "hullft_ops" if resume else uuid4().hex
    staging = path.with_name(f".{path.name}.{name}.partial")
    staging.mkdir(parents=True, exist_ok=resume)
    with (staging / MARKER).open("a") as marker:
        try:
            fcntl.flock(marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"output {path}: another process writes it") from None
        try:
            yield staging
            marker.truncate(0)
            json.dump(_files(staging), marker)
            marker.flush()
            # The user may have put something there meanwhile.
            check_output(path, overwrite=overwrite)
            old = path.with_name(f".{path.name}.{uuid4().hex}.old")
            if path.exists():
                path.rename(old)
            staging.rename(path)
            shutil.rmtree(old, ignore_errors=True)
        finally:
            if not resume or _files(staging) == [MARKER]:
                shutil.rmtree(staging, ignore_errors=True)


def _files(folder: Path) -> list[str]:
    """Files in the folder at any depth, links too."""
    return sorted(
        entry.relative_to(folder).as_posix()
        for entry in folder.rglob("*")
        if entry.is_symlink() or not entry.is_dir()
    )
