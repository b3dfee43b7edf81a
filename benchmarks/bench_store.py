"""Opening a datastore of made-up passages, beside reading all of it; an exact search in it."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.recorder import Recorder
from hullft_ops.ttft.store.datastore import Datastore

_DIM = 384
_K = 200


class _MadeUp:
    """An embedder of random directions."""

    name = "made up"
    dim = _DIM

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        generator = np.random.default_rng(len(texts[0]))
        vectors = generator.standard_normal((len(texts), _DIM), np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors


class Case(NamedTuple):
    action: str
    passages: int

    def __str__(self) -> str:
        return f"{self.action} {self.passages} passages"


def cases(smoke: bool) -> list[Case]:
    passages = 1000 if smoke else 10**5
    return [Case("open", passages), Case("search", passages)]


def test_store(case: Case, recorder: Recorder, tmp_path: Path) -> None:
    texts = (
        f"passage {n} " + "of a made-up corpus " * 40 for n in range(case.passages)
    )
    path = tmp_path / "store"
    store = Datastore.build(texts, _MadeUp(), path)
    assert len(Datastore.open(path)) == case.passages
    if case.action == "open":
        recorder.ours(partial(Datastore.open, path))
        recorder.peer("verify", store.verify)
        return
    query = _MadeUp().encode(["query"])
    matrix = store.embeddings.numpy()

    def numpy() -> np.ndarray:
        return np.argpartition(matrix @ query[0], -_K)[-_K:]

    search = partial(store.search, query, _K)
    scores, _ = search()
    # Texts of one length have one vector, so positions may differ.
    expected = np.sort((matrix @ query[0])[numpy()])[::-1]
    np.testing.assert_allclose(scores[0].numpy(), expected, rtol=1e-5, atol=1e-6)
    recorder.ours(search)
    recorder.peer("numpy", numpy)
