"""Test-time finetuning of a HuggingFace language model, from a corpus to an adapted answer."""

from hullft_ops._extras import missing

try:
    from hullft_ops.ttft.adapted_model import SavedAdapter
    from hullft_ops.ttft.experts import Experts, build_experts
    from hullft_ops.ttft.finetuner import TestTimeFinetuner
    from hullft_ops.ttft.model.loading import load_model
    from hullft_ops.ttft.model.memory import keep_freed_memory
    from hullft_ops.ttft.model.scoring import BitsPerByte, bits_per_byte, score_text
    from hullft_ops.ttft.plot import plot_adaptation
    from hullft_ops.ttft.report import AdaptationReport
    from hullft_ops.ttft.retrieval.activeft import Retriever
    from hullft_ops.ttft.retrieval.methods import SelectionMethod
    from hullft_ops.ttft.retrieval.support import Support
    from hullft_ops.ttft.store.base import MemoryStore, Store
    from hullft_ops.ttft.store.build import Cutting, index_corpus
    from hullft_ops.ttft.store.datastore import Datastore
    from hullft_ops.ttft.store.embedding import (
        Embedder,
        SentenceTransformerEmbedder,
        load_embedder,
    )
    from hullft_ops.ttft.store.search import IndexThresholds
    from hullft_ops.ttft.store.sources import Source
    from hullft_ops.ttft.support_training import TrainedAdapter
    from hullft_ops.ttft.tiny import tiny_lm_path
except ModuleNotFoundError as error:
    if error.name is None or error.name.startswith("hullft_ops"):
        raise
    raise ImportError(missing("hullft_ops.ttft", error.name)) from error

__all__ = [
    "AdaptationReport",
    "BitsPerByte",
    "Cutting",
    "Datastore",
    "Embedder",
    "Experts",
    "IndexThresholds",
    "MemoryStore",
    "Retriever",
    "SavedAdapter",
    "SelectionMethod",
    "SentenceTransformerEmbedder",
    "Source",
    "Store",
    "Support",
    "TestTimeFinetuner",
    "TrainedAdapter",
    "bits_per_byte",
    "build_experts",
    "index_corpus",
    "keep_freed_memory",
    "load_embedder",
    "load_model",
    "plot_adaptation",
    "score_text",
    "tiny_lm_path",
]
