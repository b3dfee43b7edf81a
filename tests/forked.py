"""A copy of this process that ends with what it was forked for."""

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable


def forked(action: Callable[[], object], seconds: int = 60) -> int:
    """The id of a process that runs ``action``, for so long at most: its status is 0 or 1."""
    child = os.fork()
    if child:
        return child

    if "tqdm" in sys.modules:
        # Its lock is shared between processes: one killed under it would hold it for good. Each
        # class of bars may have its own.
        bars = [sys.modules["tqdm"].tqdm]
        for bar in bars:
            bar.set_lock(threading.RLock())
            bars.extend(bar.__subclasses__())

    signal.alarm(seconds)
    status = 1
    try:
        action()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def status_of(child: int) -> int:
    """The exit status of a child once it has ended; negative for the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
