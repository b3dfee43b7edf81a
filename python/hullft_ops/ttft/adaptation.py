"""Keeping a model adapted for the length of a with block."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from types import FrameType
from typing import Any

from hullft_ops.ttft.adapted_model import AdaptedModel
from hullft_ops.ttft.model.exclusive import Claim
from hullft_ops.ttft.report import AdaptationReport

# How many changes an error names.
_LISTED = 4
_Handler = Callable[[int, FrameType | None], Any]


@dataclass(eq=False, repr=False)
class Adaptation(AbstractContextManager[AdaptationReport]):
    """Claims a model, saves it and changes it. On exit, whatever the exit, restores it.

    Signals wait while it saves and restores. If one comes at the call of `__exit__`, before that
    can hold any, `__del__` restores the model. ``adapt`` gets a function to call before the first
    change, and the deadline on `perf_counter`. ``forget`` drops what belongs to the adapted model.
    """

    claim: Claim
    adapted: AdaptedModel
    adapt: Callable[[Callable[[], None], float | None], AdaptationReport]
    seconds: float | None
    forget: Callable[[], None]
    _report: AdaptationReport | None = field(default=None, init=False)
    _saved: bool = field(default=False, init=False)

    def __enter__(self) -> AdaptationReport:
        deadline = None if self.seconds is None else perf_counter() + self.seconds
        if self.claim.is_held:
            raise RuntimeError(
                "TestTimeFinetuner: this adaptation is entered already: leave its with block first"
            )
        try:
            self.claim.__enter__()
            self._report = self.adapt(self._save, deadline)
            self._report.hold(self.adapted if self._saved else None)
            return self._report
        except BaseException:
            self._close()
            raise

    def __exit__(self, *raised: object) -> None:
        left = perf_counter()
        self._close()
        # A GPU is only handed the work.
        if self._report is not None and self.adapted.model.device.type != "cuda":
            self._report.seconds_restore = perf_counter() - left
        if not self.claim.is_of_this_thread:
            raise RuntimeError(
                f"TestTimeFinetuner: the thread {self.claim.thread.name} entered this with block, "
                f"and {threading.current_thread().name} left it; the model is restored, enter and "
                "leave a block in one thread"
            )

    def __del__(self) -> None:
        # Reached if a generator was never finished, or an exit was cut short.
        if hasattr(self, "claim") and self.claim.is_held:
            self._close()

    def _save(self) -> None:
        with signals_held():
            self._saved = True
            self.adapted.snapshot.save()

    def _close(self) -> None:
        try:
            self._restore()
        except BaseException:
            # A signal may have come before it could be held. Restoring does not repeat its work.
            self._restore()
            raise

    def _restore(self) -> None:
        with signals_held():
            if self.claim.is_held:
                self.forget()
            if self._report is not None:
                self._report.hold(None)
            changes = self.adapted.snapshot.restore() if self._saved else []
            self._saved = False
            self.claim.release()
            if changes:
                more = (
                    f"; and {len(changes) - _LISTED} more"
                    if len(changes) > _LISTED
                    else ""
                )
                raise RuntimeError(
                    "TestTimeFinetuner: the with block made changes that are not undone, load the "
                    "model again and make them outside of the block: "
                    f"{'; '.join(changes[:_LISTED])}{more}"
                )


@contextmanager
def signals_held() -> Iterator[None]:
    """Hold back the signals that Python handles, and call each of their handlers at the end."""
    # Python interrupts no other thread.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    found = {number: signal.getsignal(number) for number in signal.valid_signals()}
    handlers: dict[int, _Handler] = {n: h for n, h in found.items() if callable(h)}
    # A stack calls every handler, even if another one raises.
    with ExitStack() as arrived:

        def hold(number: int, frame: FrameType | None) -> None:
            arrived.callback(handlers[number], number, frame)

        try:
            for number in handlers:
                signal.signal(number, hold)
            yield
        finally:
            try:
                _put_back(handlers)
            except BaseException:
                # A handler that is already back may raise before the last one is back.
                _put_back(handlers)
                raise


def _put_back(handlers: dict[int, _Handler]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
