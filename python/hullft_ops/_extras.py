"""What to say where a library is missing that comes with an extra of this package."""

from collections.abc import Iterator
from contextlib import contextmanager


def missing(what: str, library: str | None, extra: str = "ttft") -> str:
    """That ``what`` needs the library, and how to install the extra: no index has this package."""
    return f"{what} needs {library}: pip install '.[{extra}]' in its checkout"


@contextmanager
def needed_by(what: str, extra: str = "ttft") -> Iterator[None]:
    """Around an import where a library is used: a missing one raises what `missing` says.

    Raises:
        ImportError: the library is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ImportError(missing(what, error.name, extra)) from error
