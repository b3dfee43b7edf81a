"""The guide to re-ranking: its blocks, and its parts for LangChain and LlamaIndex."""

import os
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
from pydantic import BaseModel

from guides import RERANK, run_blocks

VECTORS = {
    "a page": [1.0, 0.0],
    "a copy of the page": [1.0, 0.0],
    "another page": [0.6, 0.8],
    "both": [0.9, 0.4],
}


class Embeddings:
    """An embedder with the methods of both packages."""

    def embed_query(self, text: str) -> list[float]:
        return VECTORS[text]

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [VECTORS[text] for text in texts]

    get_query_embedding = embed_query
    get_text_embedding_batch = embed_documents


class Runnable:
    """A stand-in for LangChain's RunnableLambda."""

    def __init__(self, function: Callable[[str], list[Any]]) -> None:
        self.invoke = function


class Postprocessor(BaseModel):
    """A stand-in for LlamaIndex's BaseNodePostprocessor."""

    def postprocess_nodes(self, nodes: list[Any], query_bundle: Any) -> list[Any]:
        method: Callable[..., list[Any]] = self._postprocess_nodes  # type: ignore[attr-defined]
        return method(nodes, query_bundle)


STAND_INS: dict[str, dict[str, Any]] = {
    "langchain_core.runnables": {"RunnableLambda": Runnable},
    "llama_index.core.postprocessor.types": {"BaseNodePostprocessor": Postprocessor},
}


@pytest.fixture(scope="module")
def guide() -> Iterator[dict[str, Any]]:
    """The names that the guide's blocks define. An installed package needs no stand-in."""
    with pytest.MonkeyPatch.context() as patch:
        for name, members in STAND_INS.items():
            if find_spec(name.partition(".")[0]) is None:
                module = ModuleType(name)
                vars(module).update(members)
                patch.setitem(sys.modules, name, module)

        yield run_blocks(RERANK)


def test_the_hull_comes_first_and_the_nearest_fill_it_up(guide: dict[str, Any]) -> None:
    vectors = guide["torch"].tensor(list(VECTORS.values()))
    pool, query = vectors[:3], vectors[3]

    assert guide["rerank"](pool, query, 2) == [0, 2]
    assert guide["rerank"](pool, query, 3) == [0, 2, 1]
    # The query itself: its hull is one passage.
    assert guide["rerank"](pool, pool[2], 2) == [2, 0]
    assert guide["rerank"](pool[:1], query, 2) == [0]


def test_langchain_and_llama_index_get_the_reranked_documents(
    guide: dict[str, Any],
) -> None:
    texts = list(VECTORS)[:3]
    documents = [SimpleNamespace(page_content=text) for text in texts]
    retriever = Runnable(lambda question: documents)
    nodes = [SimpleNamespace(get_content=lambda text=text: text) for text in texts]
    question = SimpleNamespace(query_str="both")

    chain = guide["reranked"](retriever, Embeddings(), k=2)
    postprocessor = guide["HullPostprocessor"](embed_model=Embeddings(), k=2)

    assert chain.invoke("both") == [documents[0], documents[2]]
    assert postprocessor.postprocess_nodes(nodes, question) == [nodes[0], nodes[2]]
