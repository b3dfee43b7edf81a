"""Outputs: checked before the work, whole when they appear, and nothing of the user's deleted."""

import fcntl
import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

# In every folder that we write; it lists the files.
MARKER = "hullft_ops.json"


def check_output(
    path: str | Path,
    *,
    inputs: Iterable[str | Path | None] = (),
    overwrite: bool = False,
    folder: bool = True,
) -> None:
    """Refuse a bad output before the work. Inputs that are None do not matter.

    A free name is good, and for a ``folder`` an empty one. With ``overwrite`` so is a folder that
    holds only files we wrote; where no folder is to be written, a regular file.

    Raises:
        ValueError: ``path`` is one of ``inputs``, or holds one.
        FileExistsError: something else is there.
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
        return
    if path.is_dir() != folder:
        kinds = ("file", "folder") if folder else ("folder", "file")
        raise FileExistsError(f"output {path} is a {kinds[0]}, must be a {kinds[1]}")
    if folder and not any(path.iterdir()):
        return
    if not overwrite:
        raise FileExistsError(f"output {path} exists, and --overwrite is not set")
    if folder:
        marker = path / MARKER
        ours = json.loads(marker.read_bytes()) if marker.is_file() else []
        others = set(_files(path)) - {MARKER, *ours}
        if others:
            raise FileExistsError(
                f"output {path} holds {min(others)}, which hullft_ops did not write"
            )


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a file to write. At the end of the block it takes the place of ``path``."""
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
