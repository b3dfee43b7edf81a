"""The tokens between which a model reads what stands before and after a cursor."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What stands before the prefix, before the suffix, and before what is written between them.
_NAMES = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen, CodeGemma, Granite
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, Granite Code
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    # DeepSeek writes wide bars.
    ("<\uff5cfim▁begin\uff5c>", "<\uff5cfim▁hole\uff5c>", "<\uff5cfim▁end\uff5c>"),
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),  # CodeLlama
    ("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"),  # GLM
)
# Codestral reads the suffix first, and writes on after the prefix.
_SUFFIX_FIRST = ("[SUFFIX]", "[PREFIX]")


@dataclass(frozen=True)
class Marks:
    """The marks of a model.

    Attributes:
        prefix: stands before the text before the cursor.
        suffix: stands before the text after it.
        order: all, in the order in which the model reads them.
        names: how a text would write them.
    """

    prefix: int
    suffix: int
    order: Sequence[int]
    names: Sequence[str]


def marks_of(tokenizer: "PreTrainedTokenizerBase") -> Marks | None:
    """The marks that the vocabulary has; None if it has none."""
    vocabulary = tokenizer.get_vocab()
    for names in _NAMES:
        if vocabulary.keys() >= set(names):
            order = [vocabulary[name] for name in names]
            return Marks(order[0], order[1], order, [n.lstrip("▁") for n in names])
    if vocabulary.keys() >= set(_SUFFIX_FIRST):
        suffix, prefix = (vocabulary[name] for name in _SUFFIX_FIRST)
        return Marks(prefix, suffix, [suffix, prefix], _SUFFIX_FIRST)
    return None


def split_at_marks(text: str) -> tuple[str, str, str]:
    """A text in which a client has written marks, of whatever model: what stands before them, and
    the texts before and after the cursor. Without marks, all stands before the cursor."""
    for names in _NAMES:
        # CodeLlama's stand after a space.
        first, *others = (re.sub("^▁", " ", name) for name in names)
        marks = map(re.escape, (first.lstrip(), *others))
        found = re.fullmatch("(.*?){}(.*){}(.*){}".format(*marks), text, re.DOTALL)
        if found:
            return found[1], found[2], found[3]
    suffix, prefix = map(re.escape, _SUFFIX_FIRST)
    found = re.fullmatch(f"{suffix}(.*){prefix}(.*)", text, re.DOTALL)
    return ("", found[2], found[1]) if found else ("", text, "")
