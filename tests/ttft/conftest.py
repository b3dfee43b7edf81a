"""A cheap embedder, a store in memory, tiny random models, and tokenizers of every kind."""

import os
import zlib

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from hullft_ops.ttft import techniques, training
from hullft_ops.ttft.finetuner import TestTimeFinetuner
from hullft_ops.ttft.prefix import Passage, Prefix
from hullft_ops.ttft.store.base import MemoryStore

CONTEXT = 32
TRAINING_TEXT = ["hello world, the cat sat on the mat and the dog ran to the park"] * 20
SPECIAL = ["<unk>", "<s>", "</s>"]
WORDS = [
    "cat",
    "dog",
    "mat",
    "park",
    "tree",
    "house",
    "world",
    "red",
    "blue",
    "hello",
    "ran",
    "sat",
    "the",
    "a",
    "on",
    "to",
]


class HashingEmbedder:
    """Counts words by hash; the constant last entry keeps every vector away from zero."""

    def __init__(self, name="hashing", dim=24):
        self.name = name
        self.dim = dim

    def encode(self, texts):
        vectors = np.zeros((len(texts), self.dim))
        vectors[:, -1] = 0.1
        for vector, text in zip(vectors, texts, strict=True):
            for word in text.split():
                vector[zlib.crc32(word.encode()) % (self.dim - 1)] += 1

        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors.astype(np.float32)


@pytest.fixture(autouse=True)
def _steps_in_backward(monkeypatch):
    """Models as small as these would be too small to be trained in parts."""
    monkeypatch.setattr(training, "_LEAST_BYTES", 1)


@pytest.fixture
def weigh_ngrams(monkeypatch):
    """Gives n-grams other weights: random models are surer of nothing."""

    def weigh(*weights):
        monkeypatch.setattr(techniques.ngrams, "WEIGHTS", weights)

    return weigh


@pytest.fixture
def read_by():
    """The tokens that a model reads from now on: of each pass, a list for each row."""

    def listen(model):
        passes = []
        model.register_forward_pre_hook(
            lambda module, args, named: passes.append(named["input_ids"].tolist()),
            with_kwargs=True,
        )
        return passes

    return listen


@pytest.fixture
def copier_of(dynamic_llama, tokenizer, store_of, embedder, weigh_ngrams):
    """Makes a finetuner that goes on as its one passage does."""

    def make(text, tokenizer=tokenizer, **options):
        dynamic_llama.config.max_position_embeddings = 512
        weigh_ngrams(0.5, 0.9, 0.9, 0.9, 0.9)
        settings = {"n_select": 0, "train_on_prompt": 0, "context": 0, "dtype": None}
        return TestTimeFinetuner(
            dynamic_llama, tokenizer, store_of([text]), embedder, **settings | options
        )

    return make


@pytest.fixture
def embedder():
    return HashingEmbedder()


@pytest.fixture
def other_embedder():
    return HashingEmbedder


@pytest.fixture(scope="session")
def texts():
    """60 texts of 4 to 40 words, so that some are longer than the context."""
    random = np.random.default_rng(0)
    sizes = random.integers(4, 41, size=60)
    return [" ".join(random.choice(WORDS, size=size)) for size in sizes]


@pytest.fixture
def store_of(embedder):
    """Makes a store of texts."""

    def make(texts):
        return MemoryStore(texts, embedder.encode(texts), embedder.name)

    return make


@pytest.fixture
def store(store_of, texts):
    return store_of(texts)


def byte_level(post_processor=None, prefix=False):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    return trained(tokenizer, trainer, post_processor)


def byte_fallback(post_processor=None, prepend_scheme="first"):
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
        prepend_scheme=prepend_scheme, split=False
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    bytes_alone = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=SPECIAL + bytes_alone, show_progress=False
    )
    return trained(tokenizer, trainer, post_processor)


def trained(tokenizer, trainer, post_processor):
    tokenizer.train_from_iterator(TRAINING_TEXT, trainer)
    if post_processor is not None:
        tokenizer.post_processor = post_processor

    return tokenizer


def template(single):
    special = [("<s>", 1), ("</s>", 2)]
    return processors.TemplateProcessing(single=single, special_tokens=special)


@pytest.fixture(scope="session")
def tokenizers():
    """GPT-2's kind, its variations, and Llama's kind with a token that opens a text."""
    kinds = {
        "byte_level": byte_level(),
        "byte_level_trimmed": byte_level(processors.ByteLevel(trim_offsets=True)),
        "byte_level_prefix": byte_level(prefix=True),
        "byte_level_bos_eos": byte_level(template("<s> $A </s>")),
        "byte_level_two_openers": byte_level(template("<s> <s> $A")),
        "byte_fallback": byte_fallback(),
        "byte_fallback_bare": byte_fallback(prepend_scheme="never"),
        "byte_fallback_bos": byte_fallback(template("<s> $A")),
    }
    return {
        name: PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            bos_token="<s>",
            eos_token="</s>",
            unk_token="<unk>",
            # transformers 4 goes by this, whatever the tokenizer says.
            add_prefix_space=name == "byte_level_prefix",
        )
        for name, tokenizer in kinds.items()
    }


@pytest.fixture
def tokenizer(tokenizers):
    return tokenizers["byte_level"]


@pytest.fixture
def gpt2():
    """Tied embeddings, and dropout at its default of 0.1."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=320,
        n_positions=CONTEXT,
        n_embd=16,
        n_layer=2,
        n_head=2,
        bos_token_id=1,
        eos_token_id=2,
    )
    return GPT2LMHeadModel(config).eval()


def tiny_llama(**options):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=320,
        max_position_embeddings=CONTEXT,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        tie_word_embeddings=False,
        **options,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def llama():
    """Untied embeddings, and buffers (rotary frequencies)."""
    return tiny_llama()


@pytest.fixture
def dynamic_llama():
    """Its buffers change with the longest text that it has read."""
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    return tiny_llama(rope_parameters=rope)


@pytest.fixture
def grouped_llama():
    """Its keys and values have a shorter side than the other layers."""
    return tiny_llama(num_key_value_heads=1)


@pytest.fixture(params=["gpt2", "llama"])
def model(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def with_lora():
    """Puts LoRAs around a Llama that change it, as trained ones would."""

    def make(model, **options):
        settings = {"target_modules": ["q_proj", "down_proj"], "r": 3}
        config = LoraConfig(task_type="CAUSAL_LM", **(settings | options))
        torch.manual_seed(1)
        peft_model = get_peft_model(model, config)

        for name, parameter in peft_model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.02)

        return peft_model.eval()

    return make


@pytest.fixture
def prefilled():
    """Passages of these tokens, read after what opens a text."""

    def make(language_model, passages):
        prefix = Prefix([Passage("", ids) for ids in passages])
        tokens = language_model.tokens("a")
        return language_model.prefill(prefix, tokens.ids[: tokens.opening])

    return make


@pytest.fixture
def make(tokenizer, store, embedder):
    """Makes a finetuner with 12 steps from a pool of 30, at a rate that shows in a few steps.

    It reads no passages and mixes no n-grams in unless the options say so.
    """

    def make(model, *, store=store, embedder=embedder, **options):
        settings = {
            "n_select": 12,
            "pool_size": 30,
            "lr": 0.5,
            "context": 0,
            "ngrams": 0,
            "dtype": None,
            "train_on_prompt": 0,
        }
        settings |= options
        return TestTimeFinetuner(model, tokenizer, store, embedder, **settings)

    return make
