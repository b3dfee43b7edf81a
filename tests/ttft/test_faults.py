"""An exception at any stage of an adaptation leaves no trace in the model, and no model locked."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import hullft_ops
from hullft_ops.ttft import Datastore, TestTimeFinetuner
from hullft_ops.ttft import finetuner as finetuner_module
from hullft_ops.ttft.model.loss import MeanLoss
from hullft_ops.ttft.model.snapshot import ModelSnapshot
from model_state import differences, state_of

PROMPT = "the cat sat on the red mat"


class StopError(Exception):
    """Raised by the tests below."""


def no_memory() -> BaseException:
    return RuntimeError(
        "[enforce fail] DefaultCPUAllocator: can't allocate memory: 1 bytes"
    )


def of_compiled_code() -> BaseException:
    return RuntimeError(
        "hullft_ops: CUDA out of memory: no workspace of 4096 bytes on cuda:0"
    )


ERRORS: dict[str, Callable[[], BaseException]] = {
    "error": StopError,
    "interrupt": KeyboardInterrupt,
    "exit": SystemExit,
    "generator exit": GeneratorExit,
    "memory": MemoryError,
    "torch memory": torch.OutOfMemoryError,
    "allocator": no_memory,
}
OUT_OF_MEMORY = ("memory", "torch memory", "allocator")


def full(model):
    return model


def with_adapters(model):
    lora = LoraConfig(
        target_modules=["c_attn"], r=2, fan_in_fan_out=True, task_type="CAUSAL_LM"
    )
    return get_peft_model(model, lora).eval()


def partly_frozen(model):
    """Odd flags, a mode that is not one, a gradient that is held, and a buffer."""
    for number, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(number % 3 != 0)
        if number % 4 == 1:
            parameter.grad = torch.full_like(parameter, number)
    model.transformer.h[0].training = True
    model.register_buffer("mean", torch.arange(3.0))
    return model


def narrow(model):
    return model.bfloat16()


KINDS = {
    "full": full,
    "lora": with_adapters,
    "frozen": partly_frozen,
    "bfloat16": narrow,
}


class OnCall:
    """Calls of a function go through but for one, which raises before it does or after."""

    def __init__(
        self, error: BaseException, number: int, *, after: bool = False
    ) -> None:
        self.error, self.left, self.after = error, number, after
        self.raised = False

    def tick(self) -> bool:
        self.left -= 1
        self.raised |= self.left == 0
        return self.left == 0

    def around(self, function):
        def call(*arguments, **keywords):
            now = self.tick()
            if now and not self.after:
                raise self.error
            result = function(*arguments, **keywords)
            if now:
                raise self.error
            return result

        return call


def patched(
    owner: Callable[[TestTimeFinetuner], object], name: str, number=1, *, after=False
):
    def breakage(finetuner, error, patch) -> OnCall:
        fault, target = OnCall(error, number, after=after), owner(finetuner)
        patch.setattr(target, name, fault.around(getattr(target, name)))
        return fault

    return breakage


def break_forward(finetuner, error, patch):
    fault = OnCall(error, 3)
    block = next(
        m for m in finetuner.model.modules() if type(m).__name__ == "GPT2Block"
    )
    patch.setattr(block, "forward", fault.around(block.forward))
    return fault


def break_backward(finetuner, error, patch):
    """In the middle of a backward pass, when some gradients are there already."""
    fault = OnCall(error, 3)
    accumulate = torch.autograd.backward

    def backward(loss):
        parameter = next(p for p in finetuner.model.parameters() if p.requires_grad)
        handle = parameter.register_hook(fault.around(lambda gradient: None))
        try:
            accumulate(loss)
        finally:
            handle.remove()

    patch.setattr(torch.autograd, "backward", backward)
    return fault


STEP, CACHE = hullft_ops.ReplayAdam, hullft_ops.GradientCache
STAGES = {
    "embedder": patched(lambda f: f._selector.embedder, "encode"),
    "search": patched(lambda f: Datastore, "search"),
    "selection": patched(lambda f: hullft_ops, "fw_select_indexed"),
    "tokenizer": patched(lambda f: type(f.tokenizer), "__call__", 2),
    "saving": patched(lambda f: ModelSnapshot, "save"),
    "saved": patched(lambda f: ModelSnapshot, "save", after=True),
    "forward": break_forward,
    "backward": break_backward,
    "before a step": patched(lambda f: STEP, "step", 3),
    "after a step": patched(lambda f: STEP, "step", 3, after=True),
    "between the steps of one gradient": patched(lambda f: STEP, "step", 2, after=True),
    "in a step, when parameters have moved": patched(
        lambda f: torch.autograd.graph, "increment_version", 2
    ),
    "keeping a gradient": patched(lambda f: CACHE, "accumulate", 2),
    "clipping": patched(lambda f: nn.utils, "clip_grad_norm_", 2),
    "replay": patched(lambda f: CACHE, "replay", 2, after=True),
    "report": patched(lambda f: finetuner_module.AdaptationReport, "of"),
}
OPTIONS = {
    "between the steps of one gradient": {"schedule": "linear", "refresh": 3},
    "keeping a gradient": {"order": "interleaved", "refresh": 3},
    "replay": {"order": "interleaved", "refresh": 3},
    "clipping": {"max_grad_norm": 1.0},
}


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    before = state_of(model)
    yield
    assert differences(before, state_of(model)) == []


def raises(kind: str):
    if kind in OUT_OF_MEMORY:
        return pytest.raises(torch.OutOfMemoryError, match="out of memory, .*Lower")
    return pytest.raises(type(ERRORS[kind]()))


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("of", KINDS)
def test_a_fault_while_adapting_leaves_the_model_as_it_was(
    gpt2, make, monkeypatch, of, stage
):
    model = KINDS[of](gpt2)
    finetuner = make(model, **({"n_select": 5, "refresh": 1} | OPTIONS.get(stage, {})))
    with finetuner.adapted(PROMPT):  # so that optimizer and copy are there
        pass
    for kind in ERRORS if of == "full" else ("error", "interrupt", "allocator"):
        with unchanged(model), monkeypatch.context() as patch:
            fault = STAGES[stage](finetuner, ERRORS[kind](), patch)
            # A text that was tokenized is not tokenized again.
            finetuner._selector._tokens.cache_clear()
            with raises(kind), finetuner.adapted(PROMPT):
                pytest.fail("the body must not run")
            assert fault.raised
        with unchanged(model), finetuner.adapted(PROMPT) as report:
            assert report.optimizer_steps == 5


def test_state_of_the_optimizer_that_found_no_memory_is_made_next_time(
    gpt2, make, monkeypatch
):
    finetuner = make(gpt2, n_select=2)
    with unchanged(gpt2), monkeypatch.context() as patch:
        patch.setattr(
            torch, "zeros_like", OnCall(no_memory(), 5).around(torch.zeros_like)
        )
        with raises("allocator"), finetuner.adapted(PROMPT):
            pytest.fail("the body must not run")
    with unchanged(gpt2), finetuner.adapted(PROMPT) as report:
        assert report.optimizer_steps == 2


@pytest.mark.parametrize("of", KINDS)
def test_a_fault_in_the_body_leaves_the_model_as_it_was(gpt2, make, of):
    model = KINDS[of](gpt2)
    finetuner = make(model, n_select=3)
    for error in (make_error() for make_error in ERRORS.values()):
        with unchanged(model):
            # The caller's own error is passed on as it is.
            with pytest.raises(type(error)) as caught, finetuner.adapted(PROMPT):
                raise error
            assert caught.value is error


@pytest.mark.parametrize("of", ["full", "lora"])
@pytest.mark.parametrize("kind", ["error", "interrupt", "allocator"])
def test_a_fault_in_a_users_own_method_leaves_the_model_as_it_was(gpt2, make, of, kind):
    faulty = [ERRORS[kind]()]

    def own(embeddings, candidates, queries, n_select):
        if faulty:
            raise faulty.pop()
        return hullft_ops.fw_select_indexed(embeddings, candidates, queries, n_select)

    model = KINDS[of](gpt2)
    finetuner = make(model, method=own)
    with unchanged(model):
        with raises(kind), finetuner.adapted(PROMPT):
            pytest.fail("the body must not run")
        with finetuner.adapted(PROMPT):
            pass


def test_a_function_for_refresh_that_raises_leaves_the_model_as_it_was(gpt2, make):
    finetuner = make(gpt2, refresh=lambda count: 0)
    with (
        unchanged(gpt2),
        pytest.raises(ValueError, match="refresh must be .*got 0"),
        finetuner.adapted(PROMPT),
    ):
        pytest.fail("the body must not run")


def test_a_fault_while_generating_leaves_the_model_as_it_was(gpt2, make, monkeypatch):
    finetuner = make(gpt2)
    with unchanged(gpt2):
        with monkeypatch.context() as patch:
            patch.setattr(type(gpt2), "generate", OnCall(StopError(), 1).around(None))
            with pytest.raises(StopError):
                finetuner.generate(PROMPT, max_new_tokens=2)
        assert isinstance(finetuner.generate(PROMPT, max_new_tokens=2), str)


def test_a_generator_that_is_closed_or_dropped_leaves_the_model_as_it_was(gpt2, make):
    finetuner = make(gpt2)

    def answers():
        with finetuner.adapted(PROMPT):
            yield 1
            yield 2

    with unchanged(gpt2):
        closed = answers()
        assert next(closed) == 1
        closed.close()
        assert next(answers()) == 1  # dropped on the spot
        entered = finetuner.adapted(PROMPT)
        entered.__enter__()
        del entered
        with finetuner.adapted(PROMPT):
            pass


def test_a_model_that_was_cast_between_two_adaptations_needs_a_new_finetuner(
    gpt2, make
):
    finetuner = make(gpt2, n_select=2)
    finetuner.generate(PROMPT, max_new_tokens=2)
    gpt2.double()
    message = r"cast after .*, from torch.float32 on cpu to torch.float64 on cpu: make a new finet"
    with pytest.raises(RuntimeError, match=message):
        finetuner.generate(PROMPT)
    assert make(gpt2, n_select=2).generate(PROMPT, max_new_tokens=2)


def test_a_model_that_the_body_casts_comes_back_in_its_own_type(gpt2, make):
    finetuner = make(partly_frozen(gpt2))
    with unchanged(gpt2), finetuner.adapted(PROMPT):
        gpt2.double()
        assert gpt2.transformer.wte.weight.dtype == torch.float64


def test_what_cannot_be_restored_is_named_and_all_else_is_back(gpt2, make):
    finetuner, before = make(gpt2), state_of(gpt2)
    name, bias = list(gpt2.named_parameters())[3]
    with (
        pytest.raises(
            RuntimeError, match=rf"load the model again and make .*block: {name}: "
        ),
        finetuner.adapted(PROMPT),
    ):
        # A copy that does not fit stands for whatever may fail.
        finetuner._snapshot.saved[3].resize_(bias.numel() + 1)
    assert differences(before, state_of(gpt2)) == [f"{name}: bytes"]


STORAGES = {
    "transformer.ln_f.bias": lambda model: model.transformer.ln_f.bias,
    "transformer.wpe.weight": lambda model: model.transformer.wpe.weight,
    "transformer.mean": lambda model: model.transformer.mean,
}


@pytest.mark.parametrize("name", STORAGES)
def test_a_storage_that_is_gone_is_named_and_all_else_is_back(gpt2, make, bits, name):
    """Trained, frozen, and a buffer's: in the middle of a copy into it the process would end."""
    gpt2.transformer.wpe.weight.requires_grad_(False)
    gpt2.transformer.register_buffer("mean", torch.ones(9))
    finetuner, before, storage = (
        make(gpt2),
        bits(gpt2),
        STORAGES[name](gpt2).untyped_storage(),
    )
    size = storage.nbytes()
    with (
        pytest.raises(RuntimeError, match=f": {name}: its storage is gone$"),
        finetuner.adapted(PROMPT),
    ):
        storage.resize_(0)
    storage.resize_(size).fill_(255)
    assert before.changed() == {name}


def test_a_parameter_without_storage_is_refused_before_it_is_copied(gpt2, make):
    finetuner = make(gpt2)
    gpt2.transformer.ln_f.bias.untyped_storage().resize_(0)
    with (
        pytest.raises(RuntimeError, match=r"parameter \[16\] is gone"),
        finetuner.adapted(PROMPT),
    ):
        pytest.fail("the body must not run")


def test_an_attribute_that_cannot_be_put_back_is_named_and_all_else_is_back(
    gpt2, make, bits
):
    class Refuses(dict):
        def clear(self):
            raise TypeError("it is for reading")

    gpt2.transformer.scales = Refuses(one=1)
    finetuner, before = make(gpt2), bits(gpt2)
    with (
        pytest.raises(RuntimeError, match=r": transformer: it is for reading$"),
        finetuner.adapted(PROMPT),
    ):
        gpt2.transformer.scales["two"] = 2
    assert before.changed() == set()
    del gpt2.transformer.scales
    with finetuner.adapted(PROMPT):
        pass


@pytest.mark.parametrize(
    "fault",
    [MemoryError(), no_memory(), torch.OutOfMemoryError("x"), of_compiled_code()],
)
@pytest.mark.parametrize(
    ("stage", "options", "message"),
    [
        (
            "embedder",
            {},
            r"selecting texts; .*Lower pool_size \(it is 30\), or shorten the prompt",
        ),
        ("forward", {}, r'max_length \(it is 32\), .*PEFT adapters.*dtype="bfloat16"'),
        (
            "replay",
            {"order": "interleaved"},
            r'order "grouped" keeps no gradients, a lower n_select \(it is 9\)',
        ),
    ],
)
def test_out_of_memory_says_what_to_lower(
    gpt2, make, monkeypatch, stage, options, message, fault
):
    finetuner = make(gpt2, n_select=9, refresh=3, **options)
    STAGES[stage](finetuner, fault, monkeypatch)
    with (
        pytest.raises(torch.OutOfMemoryError, match=f"out of memory, .*{message}"),
        finetuner.adapted(PROMPT),
    ):
        pytest.fail("the body must not run")


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
@pytest.mark.parametrize("order", ["grouped", "interleaved"])
@pytest.mark.parametrize("of", KINDS)
def test_a_loss_that_is_not_finite_stops_at_its_step(
    gpt2, make, monkeypatch, of, order, value
):
    model = KINDS[of](gpt2)
    finetuner = make(model, order=order, refresh=2)
    support = finetuner.select(PROMPT)
    calls, original = 0, MeanLoss.__call__

    def loss(self, tokens):
        nonlocal calls
        calls += 1
        found = original(self, tokens)
        return found * value if calls == 2 else found

    monkeypatch.setattr(MeanLoss, "__call__", loss)
    second = 1 if order == "interleaved" or support.counts[0] <= 2 else 0
    step = 2 if order == "interleaved" else min(support.counts[0], 2) + 1
    wanted = f"text {support.indices[second]} of the datastore is .* at step {step} of 12; the"
    with (
        unchanged(model),
        pytest.raises(RuntimeError, match=wanted),
        finetuner.adapted(support),
    ):
        pytest.fail("the body must not run")
    # Nothing was computed after it.
    assert calls == 2
    calls = 2
    with unchanged(model), finetuner.adapted(support):
        pass


def test_a_change_that_is_left_is_seen(gpt2):
    before = state_of(gpt2)
    gpt2.transformer.ln_f.bias.data[0] = 7
    assert differences(before, state_of(gpt2)) == ["transformer.ln_f.bias: bytes"]
