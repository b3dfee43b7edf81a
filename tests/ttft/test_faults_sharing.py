"""Threads, contexts and processes that meet in one model."""

import copy
import multiprocessing
import os
import pickle
import runpy
import signal
import sys
import threading
from functools import partial

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, get_peft_model

from forked import forked, status_of
from hullft_ops.ttft import bits_per_byte
from hullft_ops.ttft.model import exclusive as claims
from model_state import differences, state_of
from operators_elsewhere import operators, same_as, spawned

PROMPT = "the cat sat on the red mat"
FORKED = "a process cannot use CUDA that was forked by one that has"
LORA = LoraConfig(
    target_modules=["c_attn"], r=2, fan_in_fan_out=True, task_type="CAUSAL_LM"
)


def in_thread(action, name="elsewhere"):
    """What an exception in another thread says; None where there is none."""
    return next(map(str, run_together([action], name)), None)


def run_together(actions, name=None):
    """Each in a thread of its own, all at once; what they raise."""
    start, errors = threading.Barrier(len(actions)), []

    def run(action):
        start.wait()
        try:
            action()
        except RuntimeError as error:
            errors.append(error)

    threads = [
        threading.Thread(target=run, args=(action,), name=name) for action in actions
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def adapt(finetuner):
    with finetuner.adapted(PROMPT):
        pass


def test_two_finetuners_of_one_model_are_refused(gpt2, make):
    one, other = make(gpt2), make(gpt2, method="knn")
    before = state_of(gpt2)
    with one.adapted(PROMPT):
        adapted = state_of(gpt2)
        with pytest.raises(
            RuntimeError, match="adapted to another prompt already: leave that"
        ):
            adapt(other)
        assert differences(adapted, state_of(gpt2)) == []
        name = threading.current_thread().name
        message = in_thread(lambda: adapt(other))
        assert (
            f"already, by the thread {name}: give each thread its own copy" in message
        )
    assert differences(before, state_of(gpt2)) == []
    adapt(other)
    assert in_thread(lambda: adapt(one)) is None


def test_a_context_within_itself_is_refused_and_may_be_used_again(gpt2, make):
    context, before = make(gpt2).adapted(PROMPT), state_of(gpt2)
    with context:
        adapted = state_of(gpt2)
        with pytest.raises(RuntimeError, match="this adaptation is entered already"):
            context.__enter__()
        assert differences(adapted, state_of(gpt2)) == []
    assert differences(before, state_of(gpt2)) == []
    with context as report:
        assert report.optimizer_steps == 12


def test_modules_that_share_what_one_trains_are_refused(gpt2, make):
    wrapped = get_peft_model(copy.deepcopy(gpt2), LORA)
    view = copy.deepcopy(gpt2)
    view.transformer.wpe.weight = torch.nn.Parameter(
        gpt2.transformer.wpe.weight.data[:]
    )
    own, adapters, base = make(gpt2), make(wrapped), wrapped.get_base_model()
    other = make(view)
    with own.adapted(PROMPT):
        assert "already" in in_thread(lambda: adapt(other))
        # Of its own tensors throughout.
        with adapters.adapted(PROMPT):
            pass
    base.requires_grad_(True)
    with make(base).adapted(PROMPT), pytest.raises(RuntimeError, match="already"):
        adapt(adapters)


def test_modules_that_share_what_neither_trains_are_not(gpt2, make):
    """As adapters of two users around one frozen model are."""
    models = []
    for _ in range(2):
        memo = {id(p): p for p in gpt2.parameters()}
        models.append(get_peft_model(copy.deepcopy(gpt2, memo), LORA))
    one, other = map(make, models)
    befores = [state_of(model) for model in models]
    with one.adapted(PROMPT), other.adapted(PROMPT):
        pass
    for model, before in zip(models, befores, strict=True):
        assert differences(before, state_of(model)) == []


def test_models_that_share_modules_are_refused(gpt2, make):
    """Each would set modes and forwards that are the other's too."""
    prefix = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    one, other = (make(get_peft_model(gpt2, prefix), max_length=20) for _ in range(2))
    with one.adapted(PROMPT):
        with pytest.raises(
            RuntimeError, match="one that shares its modules, is adapted"
        ):
            adapt(other)
        assert "already, by the thread" in in_thread(lambda: adapt(other))
    adapt(other)


@pytest.fixture
def _many_switches():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("_many_switches")
def test_scorings_in_threads_wait_for_each_other(gpt2, tokenizer):
    """One that saved the modes of another's would leave those, and take the dropout of a third."""
    gpt2.train()
    wanted, found = bits_per_byte(gpt2, tokenizer, PROMPT), []
    modes = [module.training for module in gpt2.modules()]

    def score():
        found.extend(bits_per_byte(gpt2, tokenizer, PROMPT) for _ in range(20))

    assert run_together([score] * 4) == []
    assert found == [wanted] * 80
    assert [module.training for module in gpt2.modules()] == modes


@pytest.mark.usefixtures("_many_switches")
def test_models_of_their_own_are_scored_at_the_same_time(gpt2, tokenizer):
    models, inside = [gpt2, copy.deepcopy(gpt2)], threading.Barrier(2)

    def meet(*_):
        inside.wait(60)

    for model in models:
        model.register_forward_hook(meet)
    actions = [partial(bits_per_byte, model, tokenizer, PROMPT) for model in models]
    assert run_together(actions) == []


def test_a_scoring_beside_the_adaptation_of_another_thread_is_refused(
    gpt2, tokenizer, make
):
    finetuner = make(gpt2)
    message = f"the thread {threading.current_thread().name} adapts the model, or one that shares"
    with finetuner.adapted(PROMPT):
        inside = bits_per_byte(gpt2, tokenizer, PROMPT)
        assert message in in_thread(lambda: bits_per_byte(gpt2, tokenizer, PROMPT))
        assert message in in_thread(lambda: finetuner.continuation(PROMPT))
        assert bits_per_byte(gpt2, tokenizer, PROMPT) == inside
    assert in_thread(lambda: bits_per_byte(gpt2, tokenizer, PROMPT)) is None


@pytest.mark.usefixtures("_many_switches")
def test_an_adaptation_waits_for_the_scorings_of_other_threads(
    gpt2, tokenizer, make, monkeypatch
):
    gpt2.train()
    finetuner, before = make(gpt2), state_of(gpt2)
    wanted, found = bits_per_byte(gpt2, tokenizer, PROMPT), []
    scoring, waiting, wait = (
        threading.Event(),
        threading.Event(),
        threading.Condition.wait,
    )

    def told(condition, timeout=None):
        waiting.set()
        return wait(condition, timeout)

    def pause(*_):
        if not found:
            scoring.set()
            assert waiting.wait(60)

    def score():
        found.append(bits_per_byte(gpt2, tokenizer, PROMPT))

    handle = gpt2.register_forward_pre_hook(pause)
    thread = threading.Thread(target=score)
    thread.start()
    assert scoring.wait(60)
    with monkeypatch.context() as patch:
        patch.setattr(
            claims._change(), "wait", partial(told, claims._change()), raising=False
        )
        with finetuner.adapted(PROMPT):
            assert found == [wanted]
    thread.join()
    handle.remove()
    assert differences(before, state_of(gpt2)) == []


def test_a_block_that_another_thread_leaves_is_restored_and_says_so(gpt2, make):
    context, before = make(gpt2).adapted(PROMPT), state_of(gpt2)
    context.__enter__()
    message = in_thread(lambda: context.__exit__(None, None, None))
    assert (
        f"the thread {threading.current_thread().name} entered this with block, and "
        in message
    )
    assert (
        "elsewhere left it; the model is restored, enter and leave a block in one"
        in message
    )
    assert differences(before, state_of(gpt2)) == []
    with context:
        pass


def test_a_finetuner_is_not_pickled(gpt2, make):
    finetuner = make(gpt2)
    for action in (pickle.dumps, copy.deepcopy):
        with pytest.raises(
            TypeError, match="neither pickled nor copied: make one in each process"
        ):
            action(finetuner)


def test_of_many_threads_one_at_a_time_adapts(gpt2, make):
    finetuners, before = [make(gpt2) for _ in range(6)], state_of(gpt2)
    start, inside, most, refused = threading.Barrier(6), [0], [0], []

    def run(finetuner):
        start.wait()
        for _ in range(15):
            try:
                with finetuner.adapted(PROMPT):
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                    inside[0] -= 1
            except RuntimeError as error:
                refused.append(str(error))

    threads = [threading.Thread(target=run, args=(f,)) for f in finetuners]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 1
    assert refused
    assert all("adapted to another prompt already" in message for message in refused)
    assert differences(before, state_of(gpt2)) == []
    assert not claims._held


@pytest.mark.cpu_only(FORKED)
def test_a_forked_process_adapts_and_restores_on_its_own(gpt2, make):
    finetuner, before = make(gpt2), state_of(gpt2)
    adapt(finetuner)

    def check():
        adapt(finetuner)
        assert differences(before, state_of(gpt2)) == []

    assert status_of(forked(check)) == 0
    with finetuner.adapted(PROMPT):
        pid = os.fork()
        if pid == 0:
            signal.alarm(60)
    if pid == 0:
        # The child left the block by itself, and its copy of the model is restored too.
        os._exit(differences(before, state_of(gpt2)) != [])
    assert status_of(pid) == 0
    assert differences(before, state_of(gpt2)) == []
    adapt(finetuner)


@pytest.mark.cpu_only(FORKED)
def test_a_model_that_another_thread_adapts_at_the_fork_is_refused_in_the_child(
    gpt2, make
):
    finetuner = make(gpt2)
    entered, leave = threading.Event(), threading.Event()

    def hold():
        with finetuner.adapted(PROMPT):
            entered.set()
            leave.wait(60)

    def check():
        with pytest.raises(
            RuntimeError, match="was forked, so its weights .* load it again"
        ):
            adapt(finetuner)

    thread = threading.Thread(target=hold)
    thread.start()
    assert entered.wait(60)
    try:
        assert status_of(forked(check)) == 0
    finally:
        leave.set()
        thread.join()


@pytest.mark.cpu_only(FORKED)
def test_a_fork_while_another_thread_makes_a_claim_leaves_no_lock_held(gpt2, make):
    finetuner, held, leave = make(gpt2), threading.Event(), threading.Event()

    def hold():
        with claims._change():
            held.set()
            leave.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(60)
    try:
        assert status_of(forked(lambda: adapt(finetuner))) == 0
    finally:
        leave.set()
        thread.join()


def test_nothing_is_called_at_a_fork(monkeypatch):
    monkeypatch.setattr(
        os, "register_at_fork", lambda **_: pytest.fail("a hook at import")
    )
    runpy.run_path(claims.__file__)


@pytest.mark.cpu_only(FORKED)
def test_operators_work_in_a_forked_process_with_one_thread(threads_of_two):
    wanted = operators()

    def check():
        torch.set_num_threads(1)
        same_as(wanted)

    assert status_of(forked(check)) == 0


@pytest.mark.cpu_only("the operators of another process are the CPU's")
def test_operators_work_in_a_spawned_process():
    process = multiprocessing.get_context("spawn").Process(
        target=spawned, args=(operators(),)
    )
    process.start()
    process.join(100)
    assert process.exitcode == 0


@pytest.fixture
def threads_of_two():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
