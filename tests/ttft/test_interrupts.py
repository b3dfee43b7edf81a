"""Ctrl-C at every kind of moment, placed where Python would handle it; ``--kills 25`` places 500.

The exception is kept, as an interactive interpreter keeps the last one in ``sys.last_value``: with
it live the frames that it has passed, and no generator among them is finished by chance.
"""

import _thread
import signal
import sys

import pytest
import torch

from hullft_ops.ttft.scoring import score_text
from model_state import unchanged

PROMPT = "the cat sat on the red mat"


class CtrlC:
    """``CTRL_C @ signal.SIGINT`` has a signal arrive within an operator, which handles none.

    Python calls a builtin in a class without the instance.
    """

    __matmul__ = _thread.interrupt_main


CTRL_C = CtrlC()


class CtrlCAt:
    """Traces a thread, and has a signal arrive before its nth instruction; None counts alone."""

    def __init__(self, number=None):
        self.number = number
        self.count = 0

    def __call__(self, frame, event, argument):
        frame.f_trace_opcodes = True
        if event == "opcode":
            self.count += 1
            if self.count == self.number:
                # It would be handled in the next call of this function.
                sys.settrace(None)
                CTRL_C @ signal.SIGINT

        return self


@pytest.fixture(autouse=True)
def _interrupts_raise():
    """Also where the tests run in the background of a shell, which ignores them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    tracer = sys.gettrace()
    yield
    sys.settrace(tracer)
    signal.signal(signal.SIGINT, before)


def adapt(finetuner):
    with finetuner.adapted(PROMPT) as adaptation:
        return adaptation.losses


def interrupted(function, *args, number=None):
    """The KeyboardInterrupt that a call ends with if the signal comes at an instruction, and the
    trace."""
    trace = CtrlCAt(number)
    sys.settrace(trace)
    try:
        function(*args, trace)
    except KeyboardInterrupt as error:
        return error, trace
    finally:
        sys.settrace(None)

    return None, trace


def test_ctrl_c_in_the_last_expression_of_the_block(gpt2, tokenizer, make):
    finetuner = make(gpt2)
    losses = adapt(finetuner)
    with unchanged(gpt2):
        try:
            with finetuner.adapted(PROMPT):
                CTRL_C @ signal.SIGINT
        except KeyboardInterrupt as error:
            kept = error

    assert kept.__traceback__ is not None

    score_text(gpt2, tokenizer, PROMPT)

    assert adapt(finetuner) == losses


def one_adaptation(finetuner, trace):
    with finetuner.adapted(PROMPT) as adaptation:
        adaptation.score(PROMPT)
        trace.before_the_end = trace.count


def spread(first, last, count):
    """So many numbers, evenly."""
    return sorted({first + i * (last - first) // count for i in range(count)})


@pytest.mark.parametrize("part", ["all", "end"])
def test_ctrl_c_anywhere(gpt2, make, pytestconfig, part):
    finetuner = make(gpt2, n_select=2, refresh=2, context=1)
    losses = adapt(finetuner)
    _, trace = interrupted(one_adaptation, finetuner)
    first = trace.before_the_end if part == "end" else 1
    numbers = spread(first, trace.count, 10 * pytestconfig.getoption("--kills"))
    interrupts = 0
    for number in numbers:
        with unchanged(gpt2):
            kept, _ = interrupted(one_adaptation, finetuner, number=number)

        interrupts += kept is not None

        assert torch.is_grad_enabled(), number
        assert adapt(finetuner) == losses, number

    # The last ones may come when all is done.
    assert interrupts > 0.9 * len(numbers)


def test_ctrl_c_while_a_text_is_scored(gpt2, tokenizer, make, pytestconfig):
    finetuner = make(gpt2)
    losses = adapt(finetuner)

    def score(trace):
        score_text(gpt2, tokenizer, PROMPT)

    _, trace = interrupted(score)
    for number in spread(1, trace.count, 5 * pytestconfig.getoption("--kills")):
        with unchanged(gpt2):
            kept, _ = interrupted(score, number=number)

        torch.set_grad_enabled(True)

        assert adapt(finetuner) == losses, kept
