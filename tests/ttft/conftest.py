"""A cheap embedder, tiny random models, and the tokenizers that differ in how bytes are counted."""

import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from hullft_ops.ttft import Datastore, TestTimeFinetuner
from hullft_ops.ttft.model import loss

CONTEXT = 32
TRAINING_TEXT = ["hello world, the cat sat on the mat and the dog ran to the park"] * 20
SPECIAL = ["<unk>", "<s>", "</s>"]
WORDS = ["cat", "dog", "mat", "park", "tree", "house", "world", "red", "blue", "hello"]
WORDS += ["ran", "sat", "the", "a", "on", "to"]
# Large for Adam, so that a few steps show.
LR = 1e-2


class HashingEmbedder:
    """Counts words by hash; the constant last entry keeps every vector away from zero."""

    def __init__(self, name: str = "hashing", dim: int = 24) -> None:
        self.name = name
        self.dim = dim
        self.batch_sizes: list[int] = []

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        self.batch_sizes.append(len(texts))
        vectors = np.zeros((len(texts), self.dim))
        vectors[:, -1] = 0.1
        for vector, text in zip(vectors, texts, strict=True):
            for word in text.split():
                vector[zlib.crc32(word.encode()) % (self.dim - 1)] += 1
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors.astype(np.float32)


@pytest.fixture(autouse=True)
def _steps_in_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models as small as these would be too small to be trained in parts."""
    monkeypatch.setattr(loss, "_LEAST_BYTES", 1)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Models as small as these only wait for further threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _no_wait_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the system holds outlives a process that is killed, and no test cuts the power."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def embedder() -> HashingEmbedder:
    return HashingEmbedder()


@pytest.fixture
def other_embedder() -> type[HashingEmbedder]:
    return HashingEmbedder


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """60 different texts of 4 to 40 words, so that some are longer than the context."""
    random = np.random.default_rng(0)
    return [
        " ".join(random.choice(WORDS, size=random.integers(4, 41))) for _ in range(60)
    ]


@pytest.fixture
def store(texts: list[str], embedder: HashingEmbedder, tmp_path: Path) -> Datastore:
    return Datastore.build(texts, embedder, tmp_path / "store", progress=False)


def _byte_level(
    post_processor: processors.PostProcessor | None, prefix: bool
) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TRAINING_TEXT, trainer)
    if post_processor is not None:
        tokenizer.post_processor = post_processor
    return tokenizer


def _byte_fallback(
    post_processor: processors.PostProcessor | None, prepend_scheme: str = "first"
) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
        prepend_scheme=prepend_scheme, split=False
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=[*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    tokenizer.train_from_iterator(TRAINING_TEXT, trainer)
    if post_processor is not None:
        tokenizer.post_processor = post_processor
    return tokenizer


def _template(single: str) -> processors.PostProcessor:
    return processors.TemplateProcessing(
        single=single, special_tokens=[("<s>", SPECIAL.index("<s>")), ("</s>", 2)]
    )


@pytest.fixture(scope="session")
def tokenizers() -> dict[str, PreTrainedTokenizerFast]:
    """GPT-2's kind, its variations, and Llama's kind with a beginning-of-text token."""
    kinds = {
        "byte_level": _byte_level(None, prefix=False),
        "byte_level_trimmed": _byte_level(
            processors.ByteLevel(trim_offsets=True), prefix=False
        ),
        "byte_level_prefix": _byte_level(None, prefix=True),
        "byte_level_bos_eos": _byte_level(_template("<s> $A </s>"), prefix=False),
        "byte_level_two_openers": _byte_level(_template("<s> <s> $A"), prefix=False),
        "byte_fallback": _byte_fallback(None),
        "byte_fallback_bare": _byte_fallback(None, prepend_scheme="never"),
        "byte_fallback_bos": _byte_fallback(_template("<s> $A")),
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
def tokenizer(
    tokenizers: dict[str, PreTrainedTokenizerFast],
) -> PreTrainedTokenizerFast:
    return tokenizers["byte_level"]


def _gpt2(**sizes: int) -> PreTrainedModel:
    torch.manual_seed(0)
    tiny = {"n_positions": CONTEXT, "n_embd": 16, "n_layer": 2, "n_head": 2}
    config = GPT2Config(vocab_size=320, bos_token_id=1, eos_token_id=2, **tiny | sizes)
    return GPT2LMHeadModel(config).eval()


@pytest.fixture
def gpt2() -> PreTrainedModel:
    """Tied embeddings, and dropout at its default of 0.1."""
    return _gpt2()


@pytest.fixture
def large() -> PreTrainedModel:
    """19 M parameters, 76 MB: a buffer of that size stands out from the rest of the process."""
    return _gpt2(n_embd=512, n_layer=6, n_head=8)


@pytest.fixture
def llama() -> PreTrainedModel:
    """Untied embeddings, and buffers (rotary frequencies)."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=320,
        max_position_embeddings=CONTEXT,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(params=["gpt2", "llama"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return request.getfixturevalue(request.param)


@pytest.fixture
def make(
    tokenizer: PreTrainedTokenizerFast, store: Datastore, embedder: HashingEmbedder
) -> Callable[..., TestTimeFinetuner]:
    """A finetuner of a model, with 12 steps from a pool of 30."""

    def make(model: nn.Module, **options: object) -> TestTimeFinetuner:
        settings = {
            "store": store,
            "embedder": embedder,
            "n_select": 12,
            "pool_size": 30,
        }
        return TestTimeFinetuner(model, tokenizer, **(settings | {"lr": LR} | options))

    return make


class Bits:
    """The bytes of a model's parameters and buffers at one time; NaN equals itself."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._bytes = self._read()

    def _read(self) -> dict[str, torch.Tensor]:
        named = {
            **dict(self._model.named_parameters()),
            **dict(self._model.named_buffers()),
        }
        return {
            name: t.detach().clone().view(-1).view(torch.uint8)
            for name, t in named.items()
        }

    def changed(self) -> set[str]:
        """Names of what has other bytes now, or is there at one of the times only."""
        now = self._read()
        same = {
            n
            for n in now.keys() & self._bytes.keys()
            if torch.equal(now[n], self._bytes[n])
        }
        return (now.keys() | self._bytes.keys()) - same


@pytest.fixture
def bits() -> type[Bits]:
    return Bits
