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
_replaced: dict[int, _Handler] = {}
_pending: dict[int, _Handler] = {}


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
        if callable(handler) and handler is not _hold_or_deliver:
            _replaced[number] = handler
            signal.signal(number, _hold_or_deliver)


def release_signals(user: int) -> None:
    """Put the handlers back once no user is left; one that was set meanwhile stays."""
    _users.discard(user)
    if _users or threading.current_thread() is not threading.main_thread():
        return
    for number, handler in list(_replaced.items()):
        if signal.getsignal(number) is _hold_or_deliver:
            signal.signal(number, handler)
        del _replaced[number]


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
                handler(number, sys._getframe())

    return held


# All that `uninterrupted` makes share it.
_HOLDING = uninterrupted(lambda: None).__code__


def _holds(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code is _HOLDING:
            return True
        frame = frame.f_back
    return False


def _hold_or_deliver(number: int, frame: FrameType | None) -> None:
    handler = _replaced[number]
    if _holds(frame):
        _pending[number] = handler
    else:
        handler(number, frame)
