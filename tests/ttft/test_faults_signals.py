"""Signals at any moment of an adaptation, sent for real."""

import ast
import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pytest

from hullft_ops.ttft import adaptation
from hullft_ops.ttft.adaptation import signals_held
from hullft_ops.ttft.model import snapshot
from hullft_ops.ttft.model.snapshot import ModelSnapshot
from model_state import differences, state_of

PROMPT = "the cat sat on the red mat"
ROUNDS = 120


@pytest.fixture(autouse=True)
def _interrupts_raise() -> Iterator[None]:
    """Also where the tests run in the background of a shell, which ignores them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def _no_handler_left() -> Iterator[None]:
    handler = signal.getsignal(signal.SIGINT)
    yield
    assert signal.getsignal(signal.SIGINT) is handler


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


class FirstError(Exception):
    """Raised by the handler of one signal."""


class SecondError(Exception):
    """Raised by that of another."""


def raising(error, heard):
    def handler(number, frame):
        heard.append(number)
        raise error

    return handler


@pytest.fixture
def two_signals() -> Iterator[list[int]]:
    """SIGUSR1 and SIGUSR2 raise; what their handlers were called with."""
    heard: list[int] = []
    before = [
        signal.signal(signal.SIGUSR1, raising(FirstError, heard)),
        signal.signal(signal.SIGUSR2, raising(SecondError, heard)),
    ]
    yield heard
    signal.signal(signal.SIGUSR1, before[0])
    signal.signal(signal.SIGUSR2, before[1])


def both() -> None:
    signal.raise_signal(signal.SIGUSR1)
    signal.raise_signal(signal.SIGUSR2)


def during(patch, name: str, calls: list[str], send=interrupt) -> None:
    """Signals before and after what the snapshot does."""
    function = getattr(ModelSnapshot, name)

    def call(self):
        send()
        found = function(self)
        send()
        calls.append(name)
        return found

    patch.setattr(ModelSnapshot, name, call)


@pytest.mark.usefixtures("_no_handler_left")
def test_a_signal_that_is_held_back_is_delivered_at_the_end():
    done = []

    def hold():
        with signals_held():
            interrupt()
            done.append("all of it")

    with pytest.raises(KeyboardInterrupt):
        hold()
    assert done == ["all of it"]
    with pytest.raises(KeyboardInterrupt):
        interrupt()


MANY_SIGNALS = """
import signal
from hullft_ops.ttft.adaptation import signals_held

heard = []


def handler(number, frame):
    heard.append(number)
    raise {signal.SIGUSR1: OSError, signal.SIGUSR2: LookupError}[number]


signal.signal(signal.SIGINT, signal.default_int_handler)
for number in (signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, handler)
for _ in range(200):
    heard.clear()
    chain = []
    try:
        with signals_held():
            for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT):
                signal.raise_signal(number)
            raise ValueError("of the body")
    except BaseException as error:
        while error is not None:
            chain.append(type(error))
            error = error.__context__
    assert sorted(heard) == [signal.SIGUSR1, signal.SIGUSR2], heard
    assert set(chain) == {KeyboardInterrupt, OSError, LookupError, ValueError}, chain
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
"""


def test_of_many_signals_each_is_delivered_though_each_raises():
    """In a process of its own: no adaptation of another test ends in the middle of it."""
    subprocess.run([sys.executable, "-c", MANY_SIGNALS], check=True)


@pytest.mark.usefixtures("_no_handler_left")
def test_interrupts_while_restoring_and_saving_wait(gpt2, make, monkeypatch):
    finetuner, before, calls = make(gpt2), state_of(gpt2), []
    with monkeypatch.context() as patch:
        during(patch, "restore", calls)
        with pytest.raises(KeyboardInterrupt), finetuner.adapted(PROMPT):
            calls.append("body")
        assert differences(before, state_of(gpt2)) == []
        during(patch, "save", calls)
        with pytest.raises(KeyboardInterrupt), finetuner.adapted(PROMPT):
            pytest.fail("the body must not run")
    assert calls == ["body", "restore", "save", "restore"]
    assert differences(before, state_of(gpt2)) == []
    with finetuner.adapted(PROMPT):
        pass


def test_two_signals_while_restoring_are_both_delivered_then(
    gpt2, make, monkeypatch, two_signals
):
    finetuner, before = make(gpt2), state_of(gpt2)
    with monkeypatch.context() as patch:
        during(patch, "restore", [], send=both)
        with pytest.raises((FirstError, SecondError)), finetuner.adapted(PROMPT):
            pass
    assert sorted(two_signals) == sorted([signal.SIGUSR1, signal.SIGUSR2] * 2)
    assert differences(before, state_of(gpt2)) == []
    with finetuner.adapted(PROMPT):
        pass
    assert len(two_signals) == 4


@pytest.mark.usefixtures("_no_handler_left")
def test_no_handler_of_ours_is_there_in_the_block_or_while_training(gpt2, make):
    before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    found = []

    def look(*_):
        found.append(
            {number: signal.getsignal(number) for number in signal.valid_signals()}
        )

    gpt2.register_forward_hook(look)
    with make(gpt2).adapted(PROMPT) as report:
        look()
    assert len(found) > report.forward_backward_passes
    assert all(handlers == before for handlers in found)


@pytest.mark.usefixtures("_no_handler_left")
def test_a_handler_set_in_the_block_stays(gpt2, make):
    finetuner, heard = make(gpt2), []
    interrupted = signal.getsignal(signal.SIGINT)
    with finetuner.adapted(PROMPT):
        signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
        interrupt()
    interrupt()
    assert heard == [signal.SIGINT] * 2
    signal.signal(signal.SIGINT, interrupted)


@pytest.mark.usefixtures("_no_handler_left")
def test_asyncio_in_the_block_cancels_its_task_at_an_interrupt(gpt2, make):
    """As without us: asyncio takes the signal where it finds Python's own handler."""
    finetuner, before, heard = make(gpt2), state_of(gpt2), []

    async def main():
        interrupt()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            heard.append("cancelled")
            raise

    with pytest.raises(KeyboardInterrupt), finetuner.adapted(PROMPT):
        asyncio.run(main())
    assert heard == ["cancelled"]
    assert differences(before, state_of(gpt2)) == []


@pytest.mark.usefixtures("_no_handler_left")
def test_an_alarm_in_the_block_or_while_training_raises_there(gpt2, make):
    finetuner, before, reached = make(gpt2), state_of(gpt2), []
    handler = signal.signal(signal.SIGALRM, raising(TimeoutError, []))

    def ring(*_):
        signal.raise_signal(signal.SIGALRM)
        reached.append("after it")

    try:
        with pytest.raises(TimeoutError), finetuner.adapted(PROMPT):
            ring()
        assert differences(before, state_of(gpt2)) == []
        handle = gpt2.register_forward_hook(ring)
        with pytest.raises(TimeoutError), finetuner.adapted(PROMPT):
            pytest.fail("the body must not run")
        handle.remove()
        assert differences(before, state_of(gpt2)) == []
    finally:
        signal.signal(signal.SIGALRM, handler)
    assert reached == []


def test_restoring_that_is_cut_short_is_done_again(gpt2, make, monkeypatch):
    """By what no handler holds back, such as an exception set in a thread from outside."""
    finetuner, before, calls = make(gpt2), state_of(gpt2), []
    restore = snapshot._Tensor.restore

    def cut_once(self):
        calls.append(self.name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return restore(self)

    monkeypatch.setattr(snapshot._Tensor, "restore", cut_once)
    with pytest.raises(KeyboardInterrupt), finetuner.adapted(PROMPT):
        pass
    assert len(calls) == 3 + len([*gpt2.parameters(), *gpt2.buffers()])
    assert differences(before, state_of(gpt2)) == []
    with finetuner.adapted(PROMPT):
        pass


def test_an_interrupt_on_the_way_out_restores_once_its_exception_is_dropped(gpt2, make):
    finetuner, before = make(gpt2), state_of(gpt2)
    tracer = sys.gettrace()

    def interrupt_exit(frame, event, argument):
        if event == "call" and frame.f_code is adaptation.Adaptation.__exit__.__code__:
            sys.settrace(tracer)
            interrupt()

    def leave():
        sys.settrace(interrupt_exit)
        with finetuner.adapted(PROMPT):
            pass

    try:
        leave()
    except KeyboardInterrupt:
        assert differences(before, state_of(gpt2)) != []
        with pytest.raises(RuntimeError, match="adapted to another prompt already"):
            leave()
        sys.settrace(tracer)
    assert differences(before, state_of(gpt2)) == []
    with finetuner.adapted(PROMPT):
        pass


@cache
def finally_lines(file: str) -> set[int]:
    """The first line of every ``finally``."""
    tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    tries = (
        node for node in ast.walk(tree) if isinstance(node, ast.Try) and node.finalbody
    )
    return {node.finalbody[0].lineno for node in tries}


@pytest.mark.usefixtures("_no_handler_left")
def test_an_interrupt_at_a_line_leaves_the_model_as_it_was(gpt2, make):
    """At every so many calls and lines of the package, as a tracer sees them."""
    finetuner, before = make(gpt2, n_select=2), state_of(gpt2)
    support = finetuner.select(PROMPT)
    with finetuner.adapted(support):
        pass
    ours = str(Path(adaptation.__file__).parent)
    tracer_before = sys.gettrace()  # that of a measurement of coverage

    def adapt_interrupted_at(number: int) -> bool:
        """Whether there were so many."""
        left = number

        def trace(frame, event, argument):
            nonlocal left
            if not frame.f_code.co_filename.startswith((ours, contextlib.__file__)):
                return None
            # Python looks for signals neither on a return nor where an exception is raised; nor
            # between a block's last call, which the block still covers, and its finally's first.
            file = frame.f_code.co_filename
            looked = event == "call" or (
                event == "line" and frame.f_lineno not in finally_lines(file)
            )
            left -= looked
            if left == 0 and looked:
                sys.settrace(None)
                # The handler sees the traced frame, as it would if the system had interrupted it.
                signal.getsignal(signal.SIGINT)(signal.SIGINT, frame)
            return trace

        sys.settrace(trace)
        try:
            with finetuner.adapted(support):
                pass
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(tracer_before)
        return left <= 0

    # Each begins where the one before it was interrupted.
    for number in range(1, 40000, 61):
        more = adapt_interrupted_at(number)
        assert differences(before, state_of(gpt2)) == [], number
        if not more:
            break
    assert 500 < number < 39000


def send_interrupts(child: int, seed: int) -> int:
    """One to three in a row, at a random moment each, until the child is gone; its wait status."""
    moments = random.Random(seed)
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        time.sleep(moments.uniform(0.001, 0.02))
        for _ in range(moments.randint(1, 3)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGINT)


def test_interrupts_at_random_moments_leave_the_model_as_it_was(gpt2, make):
    """A process that adapts over and over, under a rain of signals from another one."""
    finetuner, before = make(gpt2, n_select=3), state_of(gpt2)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(100)
        os.close(reader)
        code = 1
        try:
            adapt_under_fire(finetuner, gpt2, before, writer)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader) as report, ThreadPoolExecutor(1) as thread:
        assert report.readline() == "ready\n"
        status = thread.submit(send_interrupts, child, seed=0)
        counts = report.readline()
    assert os.waitstatus_to_exitcode(status.result()) == 0
    interrupted, changed = map(int, counts.split())
    assert changed == 0
    assert interrupted >= ROUNDS


def adapt_once(finetuner) -> None:
    with finetuner.adapted(PROMPT):
        time.sleep(0.002)


def interrupt_an_adaptation(_number, frame) -> None:
    """Raises within `adapt_once` alone, so that nothing is raised where nothing catches it."""
    while frame is not None:
        if frame.f_code is adapt_once.__code__:
            raise KeyboardInterrupt
        frame = frame.f_back


def adapt_under_fire(finetuner, model, before, writer) -> None:
    sys.settrace(
        None
    )  # a measurement of coverage, interrupted, would keep its own lock
    signal.signal(signal.SIGINT, interrupt_an_adaptation)
    os.write(writer, b"ready\n")
    interrupted = changed = 0
    while interrupted < ROUNDS:
        try:
            adapt_once(finetuner)
        except KeyboardInterrupt:
            interrupted += 1
        changed += differences(before, state_of(model)) != []
    os.write(writer, f"{interrupted} {changed}\n".encode())
