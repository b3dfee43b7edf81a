"""Holding signals back where an exception out of nowhere would leave things half done.

A signal's handler, Python's own for Ctrl-C among them, may raise on any function call of the main
thread, also on the first one of a ``finally`` or of an ``__exit__``. What must not be cut short is
decorated with `uninterrupted`: a signal that arrives meanwhile is delivered when it is through.
"""

import signal
import sys
import threading
from collections.abc import Callable
from functools import wraps
from types import FrameType
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
_Handler = Callable[[int, FrameType | None], Any]

_users: set[int] = set()
_pending: dict[int, _Handler] = {}


class _HoldOrDeliver:
    """In a handler's place: it holds the signal back where it must, or leaves it to the handler.

    It knows that handler itself. Whoever sets one inside a with block is given this as the former
    one, and may put it back, or call it, long after the block.
    """

    def __init__(self, handler: _Handler) -> None:
        self.handler = handler

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if _holds(frame):
            _pending[number] = self.handler
        else:
            self.handler(number, frame)


def hold_signals(user: int) -> None:
    """Make `uninterrupted` hold back the signals that Python handles, until `release_signals`.

    Only the main thread is ever interrupted, so that in another one this does nothing. Handlers
    stay in effect wherever nothing is held back.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    _users.add(user)
    for number in signal.valid_signals():
        handler = signal.getsignal(number)
        # Of the others the default ends the process, and nothing is left to be half done.
        if callable(handler) and not isinstance(handler, _HoldOrDeliver):
            signal.signal(number, _HoldOrDeliver(handler))


def release_signals(user: int) -> None:
    """Put the handlers back once no user is left; one that was set meanwhile stays."""
    _users.discard(user)
    if _users or threading.current_thread() is not threading.main_thread():
        return
    for number in signal.valid_signals():
        handler = signal.getsignal(number)
        if isinstance(handler, _HoldOrDeliver):
            signal.signal(number, handler.handler)


def uninterrupted(function: Callable[P, T]) -> Callable[P, T]:
    """The function, through which no signal breaks; the last thing it does is to deliver those."""

    @wraps(function)
    def held(*args: P.args, **kwargs: P.kwargs) -> T:
        delivers = threading.current_thread() is threading.main_thread() and not _holds(
            sys._getframe().f_back
        )
        try:
            return function(*args, **kwargs)
        finally:
            # Python looks for signals when a function is called or a loop goes round: after the
            # last look at what is pending there is neither.
            while delivers and _pending:
                number, handler = _pending.popitem()
                # From this frame, a handler that calls its former one would be held back again.
                handler(number, sys._getframe().f_back)

    return held


# All that `uninterrupted` makes share it.
_HOLDING = uninterrupted(lambda: None).__code__


def _holds(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code is _HOLDING:
            return True
        frame = frame.f_back
    return False
