"""The message for a missing library that comes with an extra of this package."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needed_by(what: str, extra: str = "ttft") -> Iterator[None]:
    """Around an import: an ImportError that says which library of the extra ``what`` lacks."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("hullft_ops"):
            raise
        raise ImportError(
            f"{what} needs {error.name}: pip install '.[{extra}]' in its checkout"
        ) from error
