"""The loss to train on: without full logits where that is the same, and never where it is not."""

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
)

from hullft_ops.ttft.model import loss as loss_module
from hullft_ops.ttft.model.head_loss import linear_mean_loss
from hullft_ops.ttft.model.loss import MeanLoss, next_token_losses

TOKENS = torch.arange(5, 35) * 7 % 320
SIZES = {
    "vocab_size": 320,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@pytest.fixture
def chunks(monkeypatch):
    """How many rows each call of the chunked loss was to take at once."""
    seen = []
    original = loss_module.linear_mean_loss

    def spy(hidden, weight, bias, targets, rows, *others):
        seen.append(rows)
        return original(hidden, weight, bias, targets, rows, *others)

    monkeypatch.setattr(loss_module, "linear_mean_loss", spy)
    return seen


def loss_and_gradients(model, loss):
    model.zero_grad()
    loss.backward()
    gradients = {
        n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None
    }
    return loss.detach(), gradients


def assert_equals_plain(model, tolerance, mean_loss=None):
    found = loss_and_gradients(model, (mean_loss or MeanLoss(model))(TOKENS))
    wanted = loss_and_gradients(model, next_token_losses(model, TOKENS).mean())
    assert found[1].keys() == wanted[1].keys()
    assert abs(found[0] - wanted[0]) <= tolerance * wanted[0]
    for name, gradient in wanted[1].items():
        difference = (found[1][name] - gradient).norm()
        assert difference <= tolerance * max(gradient.norm(), 1e-3), name


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 2e-6)]
)
@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_loss_and_gradients_equal_those_of_full_logits(
    model, chunks, monkeypatch, dtype, tolerance, rows
):
    model.to(dtype)
    monkeypatch.setattr(loss_module, "_CHUNK_BYTES", rows * 320 * 4)
    assert_equals_plain(model, tolerance)
    assert chunks == [rows]


def test_a_head_with_a_bias(llama, chunks):
    llama.lm_head = nn.Linear(16, 320)
    assert_equals_plain(llama.double(), 1e-13)
    assert len(chunks) == 1


def test_adapters_and_frozen_weights(gpt2, chunks):
    lora = LoraConfig(
        target_modules=["c_attn"], r=2, fan_in_fan_out=True, task_type="CAUSAL_LM"
    )
    model = get_peft_model(gpt2.double(), lora).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    assert_equals_plain(model, 1e-12)
    assert len(chunks) == 1


def soft_capped():
    return Gemma2ForCausalLM(Gemma2Config(**SIZES, final_logit_softcapping=30.0))


def scaled():
    return CohereForCausalLM(CohereConfig(**SIZES, logit_scale=0.0625))


def divided():
    return GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=8.0))


@pytest.mark.parametrize("make_model", [soft_capped, scaled, divided])
def test_a_head_that_does_more_keeps_its_logits(make_model, chunks):
    torch.manual_seed(0)
    model = make_model().double().eval()
    assert_equals_plain(model, 0)
    assert chunks == []


def test_a_cap_that_few_bits_do_not_show_keeps_its_logits(chunks):
    """In bfloat16 a cap of 32 leaves small logits as they are."""
    torch.manual_seed(0)
    model = (
        Gemma2ForCausalLM(Gemma2Config(**SIZES, final_logit_softcapping=32.0))
        .bfloat16()
        .eval()
    )
    MeanLoss(model)(TOKENS)
    assert chunks == []


def test_a_cap_that_comes_later_is_seen(llama, chunks):
    mean_loss = MeanLoss(llama)
    mean_loss(TOKENS)
    assert len(chunks) == 1
    llama.config.final_logit_softcapping = 30.0
    mean_loss(TOKENS)
    assert len(chunks) == 1


def test_a_head_that_is_replaced_is_seen(llama, chunks):
    mean_loss = MeanLoss(llama)
    mean_loss(TOKENS)
    llama.set_output_embeddings(
        nn.Linear(*reversed(llama.lm_head.weight.shape), bias=False)
    )
    assert_equals_plain(llama, 1e-6, mean_loss)
    assert len(chunks) == 2


def test_a_hook_on_all_modules_is_called(gpt2, chunks):
    calls = []
    handle = register_module_forward_hook(lambda module, *others: calls.append(module))
    try:
        MeanLoss(gpt2)(TOKENS)
    finally:
        handle.remove()
    assert gpt2.lm_head in calls
    assert chunks == []


def test_an_adapter_on_the_head_keeps_its_logits(llama, chunks):
    model = get_peft_model(
        llama, LoraConfig(target_modules=["lm_head"], task_type="CAUSAL_LM")
    )
    assert_equals_plain(model.double(), 0)
    assert chunks == []


def test_a_prefix_that_the_base_model_does_not_see_keeps_its_logits(llama, chunks):
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = get_peft_model(llama, config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    assert_equals_plain(model, 0)
    assert chunks == []


def test_a_model_that_is_listened_to_is_called(gpt2, chunks):
    mean_loss, calls = MeanLoss(gpt2), []
    handle = gpt2.register_forward_hook(lambda *args: calls.append(args))
    assert_equals_plain(gpt2, 0, mean_loss)
    assert len(calls) == 2
    assert chunks == []
    handle.remove()
    mean_loss(TOKENS)
    assert len(chunks) == 1


def test_a_base_model_that_cannot_be_called_alone_is_not(gpt2, chunks, monkeypatch):
    monkeypatch.setattr(
        type(gpt2), "base_model", property(lambda self: self.transformer.h[0])
    )
    # transformers' own asks the base model for its embedding, which a block has not.
    monkeypatch.setattr(type(gpt2), "get_output_embeddings", lambda self: self.lm_head)
    mean_loss, probes = MeanLoss(gpt2), []
    gpt2.transformer.h[0].register_forward_pre_hook(
        lambda block, args, kwargs: probes.append("input_ids" in kwargs),
        with_kwargs=True,
    )
    assert_equals_plain(gpt2, 0, mean_loss)
    assert probes.count(True) == 1
    assert chunks == []


@pytest.mark.parametrize(
    "fault",
    [
        torch.OutOfMemoryError("no room"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: 1 bytes"),
        MemoryError("no room"),
        TimeoutError("of a handler of signals"),
    ],
    ids=repr,
)
def test_what_is_no_fault_of_the_base_model_goes_through(
    gpt2, chunks, monkeypatch, fault
):
    mean_loss = MeanLoss(gpt2)

    def fail(*args):
        raise fault

    with monkeypatch.context() as patch:
        patch.setattr(loss_module._SplitModel, "hidden", fail)
        with pytest.raises(type(fault)) as raised:
            mean_loss(TOKENS)
    assert raised.value is fault
    assert_equals_plain(gpt2, 2e-6, mean_loss)
    assert len(chunks) == 1


def test_a_first_text_without_finite_logits_decides_nothing(llama, chunks):
    mean_loss = MeanLoss(llama)
    embedding = llama.model.embed_tokens.weight
    saved = embedding.detach().clone()
    with torch.no_grad():
        embedding[TOKENS[0]] = torch.nan
    assert mean_loss(TOKENS).isnan()
    assert chunks == []
    with torch.no_grad():
        embedding.copy_(saved)
    assert_equals_plain(llama, 2e-6, mean_loss)
    assert len(chunks) == 1


class DenseEmbeddingGradients(TorchDispatchMode):
    """Counts those made for embeddings of a number of rows."""

    def __init__(self, rows):
        super().__init__()
        self.rows = rows
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.embedding_dense_backward.default:
            self.count += args[2] == self.rows
        return function(*args, **(kwargs or {}))


def dense_embedding_gradients(model):
    """How many `MeanLoss` makes for the tokens, once it has been compared with full logits."""
    mean_loss = MeanLoss(model)
    assert_equals_plain(model, 1e-13, mean_loss)
    model.zero_grad()
    embedding = model.get_input_embeddings()
    # Autograd's engine runs the backward of a CPU in this thread, where the mode is.
    with DenseEmbeddingGradients(len(embedding.weight)) as made:
        mean_loss(TOKENS).backward()
    assert "forward" not in vars(embedding)
    return made.count


def test_a_tied_embedding_makes_no_dense_gradient_of_its_own(gpt2):
    assert dense_embedding_gradients(gpt2.double()) == 0


def test_rows_read_twice_get_the_sum(gpt2, monkeypatch):
    monkeypatch.setitem(globals(), "TOKENS", torch.tensor([3, 5, 3, 3, 5, 9]))
    assert dense_embedding_gradients(gpt2.double()) == 0


def hooked_weight(model):
    model.get_input_embeddings().weight.register_hook(lambda gradient: 2 * gradient)


def hooked_gradient(model):
    def keep(weight):
        weight.kept = weight.grad.clone()

    model.get_input_embeddings().weight.register_post_accumulate_grad_hook(keep)


def hooked_embedding(model):
    model.get_input_embeddings().register_forward_hook(
        lambda module, args, out: 2 * out
    )


def scaled_by_frequency(model):
    model.get_input_embeddings().scale_grad_by_freq = True


def test_an_adapter_on_a_tied_embedding_trains_beside_it(gpt2):
    """PEFT reads the embedding's options for its own factors."""
    model = get_peft_model(
        gpt2, LoraConfig(target_modules=["wte"], task_type="CAUSAL_LM")
    )
    gpt2.get_output_embeddings().weight.requires_grad_(True)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_embedding" in name:
                parameter.normal_(std=0.1)
    assert_equals_plain(model.double(), 1e-12)


def padded_with_a_row(model):
    model.get_input_embeddings().padding_idx = int(TOKENS[3])


def normed(model):
    model.get_input_embeddings().max_norm = 0.01


@pytest.mark.parametrize(
    ("change", "dense"),
    [
        (hooked_weight, 0),
        (hooked_gradient, 0),
        (hooked_embedding, 0),
        (padded_with_a_row, 0),
        (normed, 1),
        (scaled_by_frequency, 1),
    ],
)
def test_a_tied_embedding_has_the_gradient_that_autograd_gives_it(gpt2, change, dense):
    change(gpt2)
    assert dense_embedding_gradients(gpt2.double()) == dense


def test_the_gradient_of_a_tied_weight_can_be_asked_for(gpt2):
    weight, mean_loss = gpt2.double().get_input_embeddings().weight, MeanLoss(gpt2)
    (found,) = torch.autograd.grad(mean_loss(TOKENS), weight)
    (wanted,) = torch.autograd.grad(next_token_losses(gpt2, TOKENS).mean(), weight)
    assert (found - wanted).norm() <= 1e-13 * wanted.norm()


def test_an_untied_embedding_makes_a_dense_gradient(llama):
    assert dense_embedding_gradients(llama.double()) == 1


def test_a_frozen_tied_embedding_gets_no_gradient(gpt2):
    weight = gpt2.get_input_embeddings().weight.requires_grad_(False)
    assert dense_embedding_gradients(gpt2.double()) == 0
    assert weight.grad is None


def test_a_tied_gradient_is_added_to_the_one_that_is_there(gpt2):
    model, mean_loss = gpt2.double(), MeanLoss(gpt2)
    _, once = loss_and_gradients(model, mean_loss(TOKENS))
    mean_loss(TOKENS).backward()
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter.grad, 2 * once[name], rtol=1e-12, atol=1e-15), (
            name
        )


def test_a_forward_that_fails_leaves_the_embedding_as_it_was(gpt2):
    mean_loss = MeanLoss(gpt2)
    mean_loss(TOKENS)
    with pytest.raises(IndexError):
        mean_loss(TOKENS + 320)
    assert "forward" not in vars(gpt2.get_input_embeddings())


@pytest.mark.parametrize("vocabulary", [1, 5, 1024, 1025, 2050])
@pytest.mark.parametrize("rows", [3, 9])
def test_a_vocabulary_of_any_number_of_tiles(vocabulary, rows):
    torch.manual_seed(0)
    hidden = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(vocabulary, 4, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(vocabulary, dtype=torch.float64, requires_grad=True)
    targets = torch.arange(9) * 7 % vocabulary
    tensors = (hidden, weight, bias)
    found = torch.autograd.grad(linear_mean_loss(*tensors, targets, rows), tensors)
    plain = nn.functional.cross_entropy(hidden @ weight.T + bias, targets)
    for mine, wanted in zip(found, torch.autograd.grad(plain, tensors), strict=True):
        assert torch.allclose(mine, wanted, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("rows", [7, 1000])
@pytest.mark.parametrize("autocast", [True, False])
def test_16_bit_products(gpt2, chunks, monkeypatch, autocast, rows):
    monkeypatch.setattr(loss_module, "_CHUNK_BYTES", rows * 320 * 4)
    model = gpt2 if autocast else gpt2.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        # The gradients of the logits are rounded to 8 bits on both sides.
        assert_equals_plain(model, 2**-8)
    assert chunks == [rows]


def test_a_loss_that_is_scaled_scales_its_gradients(gpt2):
    model = gpt2.double()
    _, once = loss_and_gradients(model, MeanLoss(model)(TOKENS))
    _, thrice = loss_and_gradients(model, 3 * MeanLoss(model)(TOKENS))
    for name, gradient in once.items():
        assert (3 * gradient - thrice[name]).norm() <= 1e-13 * gradient.norm(), name


@pytest.mark.parametrize(
    "trained", [("hidden",), ("weight",), ("bias",), ("weight", "bias")]
)
def test_only_what_is_trained_gets_a_gradient(trained):
    torch.manual_seed(0)
    tensors = {
        "hidden": torch.randn(9, 4, dtype=torch.float64),
        "weight": torch.randn(11, 4, dtype=torch.float64),
        "bias": torch.randn(11, dtype=torch.float64),
    }
    for name in trained:
        tensors[name].requires_grad_()
    targets = torch.arange(9)
    linear_mean_loss(*tensors.values(), targets, 4).backward()
    found = {name: tensor.grad for name, tensor in tensors.items()}
    for name in trained:
        tensors[name].grad = None
    hidden, weight, bias = tensors.values()
    nn.functional.cross_entropy(hidden @ weight.T + bias, targets).backward()
    for name, tensor in tensors.items():
        if name in trained:
            assert torch.allclose(found[name], tensor.grad, rtol=1e-12, atol=1e-15)
        else:
            assert found[name] is None
