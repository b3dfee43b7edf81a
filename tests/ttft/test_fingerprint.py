"""What tells the results of one datastore from those of another."""

from hullft_ops.ttft import Datastore
from hullft_ops.ttft.evaluation.fingerprint import fingerprint


def test_every_text_and_vector_counts(gpt2, embedder, tmp_path):
    texts = [f"text number {i}" for i in range(600)]
    runs = []
    for name, changed in (("one", None), ("same", None), ("other", 301)):
        content = [f"{text} x" if i == changed else text for i, text in enumerate(texts)]
        store = Datastore.build(content, embedder, tmp_path / name, progress=False)
        runs.append(fingerprint(gpt2, store, 0))
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]
