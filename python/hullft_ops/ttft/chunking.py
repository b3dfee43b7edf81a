"""Cutting texts by tokens, with overlap."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Characters to tokenize at a time, so that a text of any length takes bounded memory.
_WINDOW = 1 << 18


def token_chunks(
    tokenizer: "PreTrainedTokenizerBase", max_tokens: int, overlap: int = 0
) -> Callable[[str], Iterator[str]]:
    """A function that cuts a text into verbatim pieces of ``max_tokens`` tokens.

    The last piece may be shorter. Each piece begins ``overlap`` tokens before the end of the one
    before. Without overlap the pieces join up to the text again.

    Args:
        tokenizer: a fast tokenizer, which knows the characters of each token.
        max_tokens: at least 1, special tokens not counted.
        overlap: fewer than ``max_tokens``.

    Raises:
        ValueError: a size is out of range, or the tokenizer does not know the characters.
    """
    if max_tokens < 1:
        raise ValueError(f"token_chunks: max_tokens must be at least 1, got {max_tokens}")
    if not 0 <= overlap < max_tokens:
        raise ValueError(
            f"token_chunks: overlap must be at least 0 and below max_tokens, got {overlap} "
            f"of {max_tokens}"
        )
    if not tokenizer.is_fast:
        raise ValueError("token_chunks: tokenizer must be a fast one, which knows characters")

    def cut(text: str) -> Iterator[str]:
        start = 0
        while start < len(text):
            window = text[start : start + _WINDOW]
            starts = _token_starts(tokenizer, window)
            whole = start + len(window) == len(text)
            for first in range(0, max(len(starts), 1), max_tokens - overlap):
                end = first + max_tokens
                begin = starts[first] if first else 0
                # The next window cuts the last piece of this one again, with the text after it.
                if end >= len(starts) and (whole or begin == 0):
                    yield window[begin:]
                    start += len(window)
                    break
                if end >= len(starts):
                    start += begin
                    break
                if starts[end] > begin:
                    yield window[begin : starts[end]]

    return cut


def _token_starts(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    # Tokenizers warn of texts beyond a model's context; here the texts are cut to fit.
    encoding = tokenizer(
        text,
        add_special_tokens=False,
        return_attention_mask=False,
        return_offsets_mapping=True,
        truncation=False,
        verbose=False,
    )
    return [begin for begin, _ in encoding["offset_mapping"]]
