"""The message for a missing library that comes with an extra of this package."""

from collections.abc import Iterator
from contextlib import contextmanager


def missing_library(what: str, library: str | None, extra: str = "ttft") -> str:
    """Says that ``what`` needs the library, and how to install the extra of a checkout."""
    return f"{what} needs {library}: pip install '.[{extra}]' in its checkout"


@contextmanager
def needed_by(what: str, extra: str = "ttft") -> Iterator[None]:
    """Around an import: an ImportError with the message of `missing` if the library is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ImportError(missing_library(what, error.name, extra)) from error
