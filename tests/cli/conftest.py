"""A tiny random model, a tiny random embedder and a small corpus, as a user would name them."""

import json
import os
import random
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from hullft_ops.ttft import Datastore, load_embedder

WORDS = ["cat", "dog", "mat", "park", "ran", "sat", "the", "on", "to", "red", "blue"]
WORDS += ["tree"]


@pytest.fixture(autouse=True)
def _own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def byte_tokenizer() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<|endoftext|>": 0}
    for letter in alphabet:
        vocabulary[letter] = len(vocabulary)

    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=257, n_positions=256, n_embd=16, n_layer=1, n_head=2, eos_token_id=0
    )
    directory = tmp_path_factory.mktemp("model")
    GPT2LMHeadModel(config).save_pretrained(directory)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_tokenizer(), eos_token="<|endoftext|>"
    )
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def embedder_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("embedder")
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, WORDS[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    embedding = StaticEmbedding(tokenizer, embedding_dim=16)
    SentenceTransformer(modules=[embedding]).save(str(directory))
    return directory


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """60 texts of 20 to 40 words."""
    draw = random.Random(0)
    return [" ".join(draw.choices(WORDS, k=draw.randint(20, 40))) for _ in range(60)]


@pytest.fixture(scope="session")
def corpus_file(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Path:
    file = tmp_path_factory.mktemp("corpus") / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return file


@pytest.fixture(scope="session")
def store(
    tmp_path_factory: pytest.TempPathFactory, embedder_directory: Path, texts: list[str]
) -> Path:
    """A datastore of all texts but the first six."""
    path = tmp_path_factory.mktemp("datastore") / "store"
    Datastore.build(texts[6:], load_embedder(str(embedder_directory)), path)
    return path


@pytest.fixture(scope="session")
def models_of(model_directory: Path, embedder_directory: Path) -> list[object]:
    """The options that name the models."""
    return ["--model", model_directory, "--embedder", embedder_directory]
