"""Test-time finetuning of a HuggingFace language model, from a corpus to an adapted answer."""

from hullft_ops._extras import needed_by

with needed_by("hullft_ops.ttft"):
    from hullft_ops.ttft.adaptation import Adaptation
    from hullft_ops.ttft.adapter_training import AdapterConfig, train_adapter
    from hullft_ops.ttft.embedding import (
        Embedder,
        SentenceTransformerEmbedder,
        load_embedder,
    )
    from hullft_ops.ttft.finetuner import TestTimeFinetuner
    from hullft_ops.ttft.loss import NonFiniteLossError
    from hullft_ops.ttft.models.loading import load_model, tiny_lm_path
    from hullft_ops.ttft.models.memory import keep_freed_memory
    from hullft_ops.ttft.prefix import Draft, Mixture, Passage, Prediction
    from hullft_ops.ttft.question import Question, question_of
    from hullft_ops.ttft.scoring import BitsPerByte, NothingToScoreError, score_text
    from hullft_ops.ttft.search import Neighbours, Search
    from hullft_ops.ttft.store.base import MemoryStore, Store
    from hullft_ops.ttft.store.corpus import IndexConfig
    from hullft_ops.ttft.store.datastore import Datastore
    from hullft_ops.ttft.store.index import index_corpus
    from hullft_ops.ttft.techniques import TECHNIQUES, TTFTConfig
    from hullft_ops.ttft.techniques.ngrams import Ngrams
    from hullft_ops.ttft.techniques.passage_steps import (
        PassageSteps,
        SelectionMethod,
        Support,
    )
    from hullft_ops.ttft.techniques.prompt_steps import PromptSteps
    from hullft_ops.ttft.techniques.technique import Prepared, Technique
    from hullft_ops.ttft.training import Training
    from hullft_ops.ttft.validation import InputError

__all__ = [
    "TECHNIQUES",
    "Adaptation",
    "AdapterConfig",
    "BitsPerByte",
    "Datastore",
    "Draft",
    "Embedder",
    "IndexConfig",
    "InputError",
    "MemoryStore",
    "Mixture",
    "Neighbours",
    "Ngrams",
    "NonFiniteLossError",
    "NothingToScoreError",
    "Passage",
    "PassageSteps",
    "Prediction",
    "Prepared",
    "PromptSteps",
    "Question",
    "Search",
    "SelectionMethod",
    "SentenceTransformerEmbedder",
    "Store",
    "Support",
    "TTFTConfig",
    "Technique",
    "TestTimeFinetuner",
    "Training",
    "index_corpus",
    "keep_freed_memory",
    "load_embedder",
    "load_model",
    "question_of",
    "score_text",
    "tiny_lm_path",
    "train_adapter",
]
