"""What tells the results of one datastore or tokenizer from those of another."""

from copy import deepcopy

from hullft_ops.ttft import Datastore
from hullft_ops.ttft.evaluation.results import fingerprint


def test_every_text_and_vector_counts(gpt2, tokenizer, embedder, tmp_path):
    texts = [f"text number {i}" for i in range(600)]
    runs = []
    for name, changed in (("one", None), ("same", None), ("other", 301)):
        content = [
            f"{text} x" if i == changed else text for i, text in enumerate(texts)
        ]
        store = Datastore.build(content, embedder, tmp_path / name, progress=False)
        runs.append(fingerprint(gpt2, tokenizer, store, 0))
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_what_the_tokenizer_makes_of_a_text_counts(
    gpt2, tokenizers, embedder, tmp_path
):
    store = Datastore.build(["a text"], embedder, tmp_path / "store", progress=False)
    kinds = ("byte_level", "byte_level_prefix", "byte_level_bos_eos", "byte_fallback")
    runs = [fingerprint(gpt2, tokenizers[kind], store, 0) for kind in kinds]
    assert len(set(runs)) == len(kinds)
    tokenizers["byte_level"]("a text", truncation=True, max_length=2)
    assert fingerprint(gpt2, tokenizers["byte_level"], store, 0) == runs[0]
    larger = deepcopy(tokenizers["byte_level"])
    larger.add_tokens(["text"])
    assert fingerprint(gpt2, larger, store, 0) != runs[0]
