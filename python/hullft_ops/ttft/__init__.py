"""Test-time finetuning of a HuggingFace language model, from a corpus to an adapted answer."""

try:
    from hullft_ops.ttft.datastore import Datastore
    from hullft_ops.ttft.embedding import Embedder, SentenceTransformerEmbedder, load_embedder
    from hullft_ops.ttft.evaluate import BitsPerByte, bits_per_byte, score_text
    from hullft_ops.ttft.finetuner import AdaptationReport, TestTimeFinetuner
    from hullft_ops.ttft.methods import SelectionMethod
    from hullft_ops.ttft.retriever import Retriever
    from hullft_ops.ttft.support import Support
    from hullft_ops.ttft.tiny import tiny_lm_path
except ModuleNotFoundError as error:
    if error.name is None or error.name.startswith("hullft_ops"):
        raise
    raise ImportError(
        f"hullft_ops.ttft needs {error.name}: pip install 'hullft_ops[ttft]'"
    ) from error

__all__ = [
    "AdaptationReport",
    "BitsPerByte",
    "Datastore",
    "Embedder",
    "Retriever",
    "SelectionMethod",
    "SentenceTransformerEmbedder",
    "Support",
    "TestTimeFinetuner",
    "bits_per_byte",
    "load_embedder",
    "score_text",
    "tiny_lm_path",
]
