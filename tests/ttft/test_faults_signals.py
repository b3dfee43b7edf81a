"""Signals at any moment of an adaptation, sent for real."""

import ast
import contextlib
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pytest

from hullft_ops.ttft import interrupts
from hullft_ops.ttft.interrupts import hold_signals, release_signals, uninterrupted
from hullft_ops.ttft.snapshot import ModelSnapshot
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
    assert [interrupts._users, interrupts._pending] == [set(), {}]


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


@pytest.mark.usefixtures("_no_handler_left")
def test_an_interrupt_waits_for_what_must_not_be_cut_short():
    done = []

    @uninterrupted
    def inner():
        interrupt()
        done.append("inner")

    @uninterrupted
    def outer():
        inner()
        interrupt()
        done.append("outer")

    hold_signals(1)
    try:
        with pytest.raises(KeyboardInterrupt):
            outer()
        assert done == ["inner", "outer"]
        with pytest.raises(KeyboardInterrupt):
            interrupt()
        outer_error = ValueError("of its own")

        @uninterrupted
        def fails():
            interrupt()
            raise outer_error

        with pytest.raises(KeyboardInterrupt) as caught:
            fails()
        assert caught.value.__context__ is outer_error
    finally:
        release_signals(1)


@pytest.mark.usefixtures("_no_handler_left")
def test_interrupts_while_restoring_and_saving_wait(gpt2, make, monkeypatch):
    finetuner, before = make(gpt2), state_of(gpt2)
    calls = []

    def during(name):
        function = getattr(ModelSnapshot, name)

        def call(self):
            interrupt()
            function(self)
            interrupt()
            calls.append(name)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(ModelSnapshot, "_restore", during("_restore"))
        with pytest.raises(KeyboardInterrupt), finetuner.adapted(PROMPT):
            calls.append("body")
        assert differences(before, state_of(gpt2)) == []
        patch.setattr(ModelSnapshot, "_save", during("_save"))
        with pytest.raises(KeyboardInterrupt), finetuner.adapted(PROMPT):
            pytest.fail("the body must not run")
    assert calls == ["body", "_restore", "_save", "_restore"]
    assert differences(before, state_of(gpt2)) == []
    with finetuner.adapted(PROMPT):
        pass


@pytest.mark.usefixtures("_no_handler_left")
def test_a_handler_of_the_users_stays_in_effect_and_so_does_one_set_in_the_body(gpt2, make):
    finetuner, heard = make(gpt2), []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: heard.append(number))
    interrupted = signal.getsignal(signal.SIGINT)
    try:
        with finetuner.adapted(PROMPT):
            signal.raise_signal(signal.SIGUSR1)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            interrupt()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        signal.raise_signal(signal.SIGUSR1)
        assert heard == [signal.SIGUSR1] * 2
    finally:
        signal.signal(signal.SIGUSR1, before)
        signal.signal(signal.SIGINT, interrupted)


@pytest.mark.usefixtures("_no_handler_left")
def test_a_handler_put_back_after_the_block_that_replaced_it_does_what_the_first_did(gpt2, make):
    finetuner, heard = make(gpt2), []
    before = signal.getsignal(signal.SIGINT)
    with finetuner.adapted(PROMPT):
        previous = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    interrupt()
    assert heard == [signal.SIGINT]
    signal.signal(signal.SIGINT, previous)
    with pytest.raises(KeyboardInterrupt):
        interrupt()
    with pytest.raises(KeyboardInterrupt), finetuner.adapted(PROMPT):
        interrupt()
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.usefixtures("_no_handler_left")
def test_a_handler_may_call_the_one_that_it_replaced_inside_a_block(gpt2, make, monkeypatch):
    finetuner, heard, state = make(gpt2), [], state_of(gpt2)
    before = signal.signal(signal.SIGINT, lambda number, frame: heard.append("first"))

    def chained(number, frame):
        previous(number, frame)
        heard.append("chained")

    with finetuner.adapted(PROMPT):
        previous = signal.signal(signal.SIGINT, chained)
        interrupt()
    assert heard == ["first", "chained"]
    restore = ModelSnapshot._restore
    monkeypatch.setattr(ModelSnapshot, "_restore", lambda self: (interrupt(), restore(self)))
    with finetuner.adapted(PROMPT):
        interrupt()
        assert heard == ["first", "chained"] * 2
    assert heard == ["first", "chained"] * 3
    assert signal.getsignal(signal.SIGINT) is chained
    assert differences(state, state_of(gpt2)) == []
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_no_handler_left")
def test_two_models_adapted_crosswise_put_the_handler_back(gpt2, llama, make):
    one, other = make(gpt2).adapted(PROMPT), make(llama).adapted(PROMPT)
    one.__enter__()
    other.__enter__()
    one.__exit__(None, None, None)
    with pytest.raises(KeyboardInterrupt):
        interrupt()
    other.__exit__(None, None, None)


def test_another_thread_adapts_without_handlers(gpt2, make):
    finetuner, found = make(gpt2), []
    handler = signal.getsignal(signal.SIGINT)

    def adapt():
        with finetuner.adapted(PROMPT):
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=adapt)
    thread.start()
    thread.join()
    assert found == [handler]


@cache
def finally_lines(file: str) -> set[int]:
    """The first line of every ``finally``."""
    tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    tries = (node for node in ast.walk(tree) if isinstance(node, ast.Try) and node.finalbody)
    return {node.finalbody[0].lineno for node in tries}


@pytest.mark.usefixtures("_no_handler_left")
def test_an_interrupt_at_a_line_leaves_the_model_as_it_was(gpt2, make):
    """At every so many calls and lines of the package, as a tracer sees them."""
    finetuner, before = make(gpt2, n_select=2), state_of(gpt2)
    support = finetuner.select(PROMPT)
    with finetuner.adapted(support):
        pass
    ours = str(Path(interrupts.__file__).parent)
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

    for number in range(1, 20000, 31):
        more = adapt_interrupted_at(number)
        # A tracer sees lines after the last look for what is pending, where Python looks for none.
        interrupts._pending.clear()
        assert differences(before, state_of(gpt2)) == [], number
        with finetuner.adapted(support):
            pass
        if not more:
            break
    assert 500 < number < 19000


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
    sys.settrace(None)  # a measurement of coverage, interrupted, would keep its own lock
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
