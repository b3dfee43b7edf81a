"""A few texts in memory, and a build small enough to be repeated."""

from collections.abc import Callable, Iterator
from pathlib import Path

import faiss
import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from hullft_ops.ttft import Embedder, MemoryStore
from hullft_ops.ttft.experts import Experts, build_experts

CLUSTERS = 3


@pytest.fixture(autouse=True)
def _one_thread_in_faiss() -> Iterator[None]:
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(threads)


@pytest.fixture
def few(texts: list[str], embedder: Embedder) -> MemoryStore:
    return MemoryStore(texts[:14], embedder.encode(texts[:14]), embedder.name)


@pytest.fixture
def build(
    tokenizer: PreTrainedTokenizerFast, few: MemoryStore, tmp_path: Path
) -> Callable[..., Experts]:
    def build(
        model: PreTrainedModel, path: str = "experts", **options: object
    ) -> Experts:
        settings = {
            "clusters": CLUSTERS,
            "rank": 2,
            "passages": 4,
            "lr": 1e-2,
            "store": few,
        }
        settings |= options
        store = settings.pop("store")
        return build_experts(model, tokenizer, store, tmp_path / path, **settings)

    return build
