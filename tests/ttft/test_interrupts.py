"""Ctrl-C at every kind of moment, placed where Python would handle it; ``--kills 25`` places 500.

The exception is kept, as an interactive interpreter keeps the last one in ``sys.last_value``: with
it live the frames that it has passed, and no generator among them is finished by chance.
"""

import _thread
import signal
import sys

import pytest

from hullft_ops.ttft.scoring import score, score_text
from model_state import unchanged

PROMPT = "the cat sat on the red mat"


class CtrlC:
    """``CTRL_C @ signal.SIGINT`` has a signal arrive within an operator, which handles none.

    Python calls a builtin in a class without the instance.
    """

    __matmul__ = _thread.interrupt_main


CTRL_C = CtrlC()


class CtrlCAt:
    """Traces a thread, and has a signal arrive before each of these instructions in turn.

    After one it counts on from where the signal is handled.
    """

    def __init__(self, *numbers):
        self.numbers = list(numbers)
        self.count = 0

    def __call__(self, frame, event, argument):
        frame.f_trace_opcodes = True
        if event == "opcode":
            self.count += 1
            if self.count in self.numbers[:1]:
                self.numbers.pop(0)
                # It would be handled in the next call of this function.
                sys.settrace(None)
                CTRL_C @ signal.SIGINT

        return self

    def handle(self, number, frame):
        if self.numbers:
            sys.settrace(self)

        raise KeyboardInterrupt


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


def interrupted(function, *args, numbers=()):
    """The KeyboardInterrupt that a call ends with if signals come at these instructions, and the
    trace."""
    trace = CtrlCAt(*numbers)
    signal.signal(signal.SIGINT, trace.handle)
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
        adaptation.score(PROMPT, after="")
        trace.before_the_end = trace.count


def spread(first, last, count):
    """So many numbers, evenly."""
    return sorted({first + i * (last - first) // count for i in range(count)})


@pytest.mark.parametrize("part", ["all", "end", "end, twice"])
def test_ctrl_c_anywhere(gpt2, make, pytestconfig, part):
    finetuner = make(gpt2, n_select=2, refresh=2, context=1, dtype="bfloat16")
    losses = adapt(finetuner)
    # The first one also makes what the reader keeps.
    interrupted(one_adaptation, finetuner)
    _, trace = interrupted(one_adaptation, finetuner)
    first = 1 if part == "all" else trace.before_the_end
    numbers = spread(first, trace.count, 10 * pytestconfig.getoption("--kills"))
    interrupts = 0
    for position, number in enumerate(numbers):
        signals = [number]
        if part == "end, twice":
            signals.append(number + 1 + position**2 % 97)

        with unchanged(gpt2):
            kept, _ = interrupted(one_adaptation, finetuner, numbers=signals)

        interrupts += kept is not None

        assert adapt(finetuner) == losses, signals

    # The last ones may come when all is done.
    assert interrupts > 0.9 * len(numbers)


def test_ctrl_c_while_a_text_is_scored(gpt2, make, pytestconfig):
    finetuner = make(gpt2, dtype="bfloat16")
    losses = adapt(finetuner)

    def score_it(trace):
        score(finetuner.reader, PROMPT)

    _, trace = interrupted(score_it)
    for number in spread(1, trace.count, 5 * pytestconfig.getoption("--kills")):
        with unchanged(gpt2):
            kept, _ = interrupted(score_it, numbers=[number])

        assert adapt(finetuner) == losses, kept
