"""After the block the model is as it was before, whatever has ended the block."""

import inspect
import random
import signal
import sys
import threading
import time
from unittest.mock import Mock

import pytest
import torch

from hullft_ops.ttft import restore
from hullft_ops.ttft.models.weights import trained_parameters
from model_state import differences, state_of, unchanged

PROMPT = "the cat sat on the red mat"
LONG = torch.arange(1, 60)[None]


@pytest.fixture(autouse=True)
def _interrupts_raise():
    """Also where the tests run in the background of a shell, which ignores them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(params=["gpt2", "llama", "dynamic_llama"])
def prepared(request):
    """A model with a gradient, a frozen parameter and mixed modes."""
    model = request.getfixturevalue(request.param)
    frozen, held, *_ = model.parameters()
    frozen.requires_grad_(False)
    held.grad = torch.ones_like(held)
    model.training = True
    return model


def spoil(finetuner, error):
    """Change what a block may change, and leave it by an error."""
    model = finetuner.model
    names = trained_parameters(model)
    before = state_of(model)
    with finetuner.adapted(PROMPT):
        changed = differences(before, state_of(model))

        assert set(changed) >= {f"{name}: bytes" for name in names}
        assert all(parameter.grad is None for parameter in model.parameters())

        model.train()
        model.requires_grad_(False)
        for buffer in model.buffers():
            buffer.zero_()

        raise error


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt])
def test_it_is_as_before(prepared, make, error):
    finetuner = make(prepared)
    with unchanged(prepared), pytest.raises(error):
        spoil(finetuner, error)

    with unchanged(prepared), finetuner.adapted(PROMPT):
        pass


def test_a_restore_that_is_cut_short_is_repeated(gpt2, make, monkeypatch):
    finetuner = make(gpt2)
    copy = torch._foreach_copy_
    calls = []

    def cut_short(*tensors):
        calls.append(tensors)
        if len(calls) < 3:
            raise KeyboardInterrupt

        copy(*tensors)

    with (
        unchanged(gpt2),
        pytest.raises(KeyboardInterrupt),
        finetuner.adapted(PROMPT),
    ):
        monkeypatch.setattr(torch, "_foreach_copy_", cut_short)

    assert len(calls) == 3


def test_an_error_of_the_restore_ends_it(gpt2, make, monkeypatch):
    finetuner = make(gpt2)
    error = Mock(side_effect=OSError("gone"))
    with pytest.raises(OSError, match="gone"), finetuner.adapted(PROMPT):
        monkeypatch.setattr(torch, "_foreach_copy_", error)

    assert error.call_count == 3


def change_shape(model):
    next(model.parameters()).data = torch.zeros(3, 3)


class Overlapping(torch.nn.Module):
    """What a buffer may be: four times the same memory, or of inference mode."""

    def __init__(self):
        super().__init__()
        self.register_buffer("expanded", torch.ones(1).expand(4))
        with torch.inference_mode():
            self.register_buffer("inferred", torch.arange(3.0))


def test_buffers_that_torch_does_not_write_to_are_as_before(gpt2, make):
    gpt2.transformer.h[0].attn.extra = buffers = Overlapping()
    with unchanged(gpt2), make(gpt2).adapted(PROMPT):
        buffers.expanded.untyped_storage().fill_(7)
        with torch.inference_mode():
            buffers.inferred.zero_()


@pytest.mark.parametrize("change", [torch.nn.Module.half, change_shape])
def test_other_shapes_and_dtypes_are_undone(model, make, change):
    with unchanged(model), make(model).adapted(PROMPT):
        change(model)


class InterruptAtExit:
    """Raises KeyboardInterrupt as the nth ``__exit__``, or function of restore.py, begins.

    Python handles Ctrl-C where a function begins, so `torch.no_grad`, for example, may not get to
    put the grad mode back.
    """

    def __init__(self, number):
        self.number = number
        self.exits = 0
        self.error = KeyboardInterrupt()

    def __call__(self, frame, event, argument):
        code = frame.f_code
        # A tracer cannot raise within the ``try`` of a generator that goes on, as a signal does.
        if event != "call" or code.co_flags & inspect.CO_GENERATOR:
            return

        if code.co_name == "__exit__" or code.co_filename == restore.__file__:
            self.exits += 1
            if self.exits == self.number:
                raise self.error


def interrupted(function, number):
    """The interrupt, after a call. It keeps the exception, and with that every frame."""
    interrupt = InterruptAtExit(number)
    # Of a measurement of coverage.
    tracer = sys.gettrace()
    sys.settrace(interrupt)
    try:
        function()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(tracer)

    return interrupt


def test_ctrl_c_at_the_end_of_any_context_changes_nothing(gpt2, make):
    finetuner = make(gpt2, n_select=2, refresh=2, context=1)
    with finetuner.adapted(PROMPT) as uninterrupted:
        pass

    def adapt():
        with finetuner.adapted(PROMPT) as adaptation:
            adaptation.score(PROMPT)

    exits = interrupted(adapt, None).exits

    assert exits > 20

    for number in range(1, exits + 1):
        with unchanged(gpt2):
            interrupt = interrupted(adapt, number)

        assert interrupt.error.__traceback__

        with finetuner.adapted(PROMPT) as adaptation:
            assert adaptation.losses == uninterrupted.losses

    # No lock that threads share is left taken, a bar's for one.
    thread = threading.Thread(target=adapt, daemon=True)
    thread.start()
    thread.join(timeout=60)

    assert not thread.is_alive()


def test_ctrl_c_while_a_model_is_checked_changes_nothing(gpt2, make):
    exits = interrupted(lambda: make(gpt2), None).exits

    assert exits > 5

    for number in range(1, exits + 1):
        with unchanged(gpt2):
            interrupt = interrupted(lambda: make(gpt2), number)

        assert interrupt.error.__traceback__


def raise_soon(seconds):
    time.sleep(seconds)
    signal.raise_signal(signal.SIGINT)


def is_interrupted(finetuner, seconds):
    """Whether Ctrl-C after so many seconds meets an adaptation."""
    thread = threading.Thread(target=raise_soon, args=[seconds])
    has_ended = False
    try:
        thread.start()
        with finetuner.adapted(PROMPT) as adaptation:
            adaptation.score(PROMPT, after="")

        has_ended = True
        thread.join()
        time.sleep(0)
    except KeyboardInterrupt:
        return not has_ended

    return False


@pytest.mark.parametrize("prepared", ["dynamic_llama"], indirect=True)
def test_ctrl_c_at_random_moments_changes_nothing(prepared, make, pytestconfig):
    """Of the model with most to restore: its buffers change with every long text."""
    finetuner = make(prepared, context=1)
    with finetuner.adapted(PROMPT) as uninterrupted:
        pass

    start = time.perf_counter()
    with finetuner.adapted(PROMPT):
        pass

    duration = time.perf_counter() - start

    moments = random.Random(0)
    count = 2 * pytestconfig.getoption("--kills")
    interrupted = 0

    # On a busy machine some come too late. Those count for nothing.
    for _ in range(20 * count):
        with unchanged(prepared):
            moment = moments.uniform(0, duration)
            interrupted += is_interrupted(finetuner, moment)

        with finetuner.adapted(PROMPT) as adaptation:
            assert adaptation.losses == uninterrupted.losses

        if interrupted == count:
            break

    assert interrupted == count


@torch.no_grad()
def test_a_model_that_has_read_a_longer_text_reads_short_ones_as_before(
    dynamic_llama, make
):
    """Dynamic RoPE takes a short text's angles again, unless it counts that it has them."""
    short, finetuner = torch.tensor([[5, 6, 7]]), make(dynamic_llama)
    expected = dynamic_llama(short).logits
    dynamic_llama(LONG)
    with finetuner.adapted(PROMPT):
        pass

    assert torch.equal(dynamic_llama(short).logits, expected)
