"""Context managers whose end runs even where Ctrl-C strikes at its first instruction."""

import io
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from hullft_ops import _C

P = ParamSpec("P")
T = TypeVar("T")


def signal_safe(
    function: Callable[P, Iterator[T]],
) -> Callable[P, AbstractContextManager[T]]:
    """As `contextlib.contextmanager`, but a signal cannot come between the body and its end.

    Python handles signals at the first instruction of a function that is written in Python. An
    exception that the handler raises there, as Ctrl-C does, ends contextlib's ``__exit__`` before
    it has reached the generator, whose ``finally`` then does not run. Here no such function is in
    between: the handler runs in the generator, at its ``yield`` or later, so within its with
    blocks. What must be undone belongs into `at_exit`; a ``finally`` may be cut short.

    The generator sees every end of the body as GeneratorExit.
    """

    @wraps(function)
    def block(*args: P.args, **kwargs: P.kwargs) -> AbstractContextManager[T]:
        return _Block(function(*args, **kwargs))

    return block


@signal_safe
def at_exit(undo: Callable[[], None]) -> Iterator[None]:
    """Call ``undo`` at the end of the body, again from its beginning for each signal that cuts it
    short, until it is done. What the last signal's handler raised is raised then."""
    try:
        yield
    finally:
        # The first call in this clause, of a function in C++: no signal can come before it.
        _C.call_until_done(undo)


class _Block(io.IOBase):
    # IOBase's ``__exit__`` is written in C, and calls ``close``.
    def __init__(self, generator: Any) -> None:
        self._generator = generator
        # A generator's is written in C too.
        self.close = generator.close  # type: ignore[method-assign]

    def __enter__(self) -> Any:
        try:
            return next(self._generator)
        except BaseException:
            # The signal may have come behind the call.
            self.close()
            raise
