"""Loading a model: what is refused, and that nothing in its folder is run."""

import json
import re
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from hullft_ops.ttft.models.loading import load_model
from hullft_ops.ttft.validation import InputError

CODE = """
from pathlib import Path
Path({mark!r}).touch()
from transformers import PreTrainedTokenizerFast

class Tokenizer(PreTrainedTokenizerFast):
    pass
"""
IDS = torch.tensor([[5, 9, 2]])


@pytest.fixture
def folder(gpt2, tokenizer, tmp_path):
    gpt2.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def change(file: Path, **entries):
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | entries))


def refusal(name, **options) -> str:
    with pytest.raises(InputError) as caught:
        load_model(name, **options)

    message = str(caught.value)

    assert message.startswith(f"model {name}: ")
    assert "\n" not in message

    return message


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def test_a_folder_is_loaded_in_float32_and_eval_mode(folder, gpt2):
    gpt2.half().save_pretrained(folder)
    model, tokenizer = load_model(str(folder))

    assert torch.equal(logits(model), logits(gpt2.float()))
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.name_or_path == model.config.name_or_path == str(folder)
    assert tokenizer("the cat")["input_ids"]


@pytest.mark.parametrize("tied", [False, True])
def test_a_checkpoint_in_parts_has_all_weights(folder, tied):
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    config = LlamaConfig(
        vocab_size=320, num_attention_heads=2, tie_word_embeddings=tied, **sizes
    )
    model = LlamaForCausalLM(config).eval()
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="10KB")

    assert len(list(folder.glob("*.safetensors"))) > 1
    assert torch.equal(logits(load_model(folder)[0]), logits(model))


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        (
            {"n_layer": 3},
            "12 missing (transformer.h.2.attn.c_attn.bias, "
            "transformer.h.2.attn.c_attn.weight, transformer.h.2.attn.c_proj.bias, ",
        ),
        ({"tie_word_embeddings": False}, "1 missing (lm_head.weight)"),
        ({"n_layer": 1}, "11 unexpected (transformer.h.1.attn.c_attn.weight, "),
    ],
)
def test_weights_of_another_configuration_are_refused(folder, entries, reason):
    change(folder / "config.json", **entries)
    message = refusal(folder)

    assert f"its weights do not match its configuration: {reason}" in message

    model, _ = load_model(folder, allow_missing_weights=True)

    assert logits(model).isfinite().all()


def test_weights_of_other_shapes_are_refused(folder):
    change(folder / "config.json", n_embd=20)
    assert "mismatched (transformer.h.0.attn.c_attn.bias, " in refusal(folder)


def test_any_exception_of_the_libraries_is_one_line(folder):
    change(folder / "config.json", n_head=0)
    assert ": ZeroDivisionError" in refusal(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_damaged_file_is_refused(folder, name):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])

    refusal(folder)


def test_pickled_weights_are_not_read(folder, gpt2, monkeypatch):
    (folder / "model.safetensors").unlink()
    torch.save(gpt2.state_dict(), folder / "pytorch_model.bin")
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("unpickled"))

    assert "safetensors" in refusal(folder)


@pytest.mark.parametrize("beside_a_model", [False, True])
def test_an_adapter_is_no_model(folder, gpt2, tmp_path, beside_a_model):
    place = folder if beside_a_model else tmp_path / "adapter"
    gpt2.name_or_path = str(folder)
    lora = LoraConfig(task_type="CAUSAL_LM", target_modules=["c_attn"])
    get_peft_model(gpt2, lora).save_pretrained(place)
    weights = place / "adapter_model.safetensors"
    weights.rename(place / "adapter_model.bin")

    assert "is an adapter: load its base model" in refusal(place)


def test_a_tokenizers_code_in_the_folder_is_not_run(folder, tmp_path, monkeypatch):
    mark = tmp_path / "has run"
    (folder / "shipped.py").write_text(CODE.format(mark=str(mark)))
    # What a user at a terminal might answer.
    monkeypatch.setattr("builtins.input", lambda *_: "yes")
    shipped = {"AutoTokenizer": ["", "shipped.Tokenizer"]}
    change(folder / "tokenizer_config.json", auto_map=shipped)
    load_model(folder)

    assert not mark.exists()

    # The code would run where a user allows it.
    AutoTokenizer.from_pretrained(folder, trust_remote_code=True)

    assert mark.exists()


@pytest.mark.parametrize("name", ["/nowhere", "./nowhere", Path("nowhere")])
def test_a_path_without_a_folder_is_no_name_on_the_hub(name):
    assert refusal(name).endswith("no such file or folder")


def test_a_name_that_the_hub_does_not_have_takes_one_line():
    refusal("hullft-ops-tests/nowhere")


def test_a_folder_without_a_tokenizer_is_refused(folder):
    for file in folder.glob("tokenizer*"):
        file.unlink()

    assert refusal(folder).endswith("has no tokenizer")


@pytest.mark.parametrize("name", ["tpu", "cuda:99", "mps"])
def test_a_device_that_is_not_here_is_refused(name):
    with pytest.raises(InputError, match=re.escape(f"device {name}: ")):
        load_model(None, name)
