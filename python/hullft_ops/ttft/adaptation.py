"""A model adapted for as long as a with block."""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from time import perf_counter
from types import TracebackType

from hullft_ops.ttft.adaptation_report import AdaptationReport
from hullft_ops.ttft.interrupts import hold_signals, release_signals, uninterrupted


class Adaptation(AbstractContextManager[AdaptationReport]):
    """Claims a model, saves it, changes it; and on exit, whatever the exit, puts it back.

    A class and not a generator, which could not tell a signal that arrives in the block from one
    that arrives while the block is being left.

    Args:
        claim: makes what keeps others from the model.
        saved: makes what saves the model and, when closed, restores it.
        adapt: changes the model; calls its argument before the first change.
        timed: whether the time to restore goes into the report.
    """

    # Also of one whose construction was interrupted.
    _entered = False

    def __init__(
        self,
        claim: Callable[[], AbstractContextManager[None]],
        saved: Callable[[], AbstractContextManager[None]],
        adapt: Callable[[Callable[[], None]], AdaptationReport],
        *,
        timed: bool,
    ) -> None:
        self._claim_of = claim
        self._saved = saved
        self._adapt = adapt
        self._timed = timed
        self._undo = ExitStack()
        self._report: AdaptationReport | None = None

    def __enter__(self) -> AdaptationReport:
        if self._entered:
            raise RuntimeError(
                "TestTimeFinetuner: this adaptation is entered already: leave its with block first"
            )
        try:
            hold_signals(id(self))
            self._claim()
            self._report = self._adapt(self._save)
            return self._report
        except BaseException:
            self._close()
            raise

    @uninterrupted
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        left = perf_counter()
        self._close()
        if self._timed and self._report is not None:
            self._report.seconds_restore = perf_counter() - left

    def __del__(self) -> None:
        # A generator that is never finished, or an exit stack that was cut short, drops it so.
        if self._entered:
            self._close()

    @uninterrupted
    def _claim(self) -> None:
        self._undo.enter_context(self._claim_of())
        self._entered = True

    @uninterrupted
    def _save(self) -> None:
        self._undo.enter_context(self._saved())

    @uninterrupted
    def _close(self) -> None:
        try:
            self._undo.close()
        finally:
            self._entered = False
            release_signals(id(self))
