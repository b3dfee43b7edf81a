"""A tiny random model, a tiny random embedder and a small corpus, all as a user would name them."""

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
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

WORDS = [
    "cat",
    "dog",
    "mat",
    "park",
    "ran",
    "sat",
    "the",
    "on",
    "to",
    "red",
    "blue",
    "tree",
]
MALFORMED = ("{not json", '{"body": "no text here"}', '{"text": 7}', '{"text": "  "}')


def byte_tokenizer() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {
        "<|endoftext|>": 0,
        **{letter: i + 1 for i, letter in enumerate(alphabet)},
    }
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
    return saved(GPT2LMHeadModel(config), tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def unlimited_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose context neither its configuration nor its tokenizer states."""
    torch.manual_seed(0)
    config = BloomConfig(
        vocab_size=257, hidden_size=16, n_layer=1, n_head=2, eos_token_id=0
    )
    return saved(BloomForCausalLM(config), tmp_path_factory.mktemp("unlimited"))


def saved(model: PreTrainedModel, directory: Path) -> Path:
    model.save_pretrained(directory)
    PreTrainedTokenizerFast(
        tokenizer_object=byte_tokenizer(), eos_token="<|endoftext|>"
    ).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def embedder_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("embedder")
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(WORDS)}, WORDS[0])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=16)]).save(
        str(directory)
    )
    return directory


@pytest.fixture(scope="session")
def corpus_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 records of 20 to 40 words, and 4 malformed lines after the tenth of them."""
    generator = random.Random(0)
    lines = []
    for _ in range(60):
        words = generator.choices(WORDS, k=generator.randint(20, 40))
        lines.append(json.dumps({"text": " ".join(words)}))
    file = tmp_path_factory.mktemp("corpus") / "texts.jsonl"
    file.write_text(
        "\n".join([*lines[:10], *MALFORMED, *lines[10:]]) + "\n", encoding="utf-8"
    )
    return file
