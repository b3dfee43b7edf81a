"""Prompts one after the other, as an editor sends them: what was read stays for the next."""

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from time import perf_counter
from typing import Any

from hullft_ops.ttft.chat import Conversation
from hullft_ops.ttft.finetuner import TestTimeFinetuner
from hullft_ops.ttft.prefix import Passage, Prefix
from hullft_ops.ttft.question import Question, question_of
from hullft_ops.ttft.techniques.technique import prefix_of
from hullft_ops.ttft.tokens import PROBE
from hullft_ops.ttft.training import Deadline
from hullft_ops.ttft.windows import LineBlocks
from hullft_ops.ttft.write import continue_questions

# So much of the beginning of a text tells where it stands in the last one, and so large a share of
# common lines that both are of one file.
_BEGINNING_CHARS, _SAME_LINES = 200, 0.5
# Passages stay while the cursor is within so many lines of where they were retrieved.
_NEAR_LINES = 20
# How long the model reads until it sees whether something else is wanted.
_PIECE_SECONDS = 0.3
# Reading fewer tokens tells nothing of the speed.
_LEAST_MEASURED = 32
_LEAST_BUDGET = 16
# Editors send up to sixteen chunks of 32 lines. So many of the last are read.
_CHUNKS = 5
# A suffix stands after what changes, so the model reads it anew for each prompt: as much as
# llama.cpp reads of it in a batch of 1,024 tokens.
_SUFFIX_TOKENS = 256


class Session:
    """Continues prompts one after the other. Use it in one thread, and close it.

    While the cursor moves by at most 20 lines in a file, passages stay, and the model reads only
    what stands after the first token that differs from the last prompt. If techniques train, each
    prompt is adapted to by itself.

    Args:
        finetuner: the model and the datastore.

    Attributes:
        finetuner: may be replaced by one `with_store`.
        n_read: how many tokens of the last prompt were to be read.
        n_cached: how many had been read before.
    """

    def __init__(self, finetuner: TestTimeFinetuner) -> None:
        self.finetuner = finetuner
        self.n_read = self.n_cached = 0
        self._text = ""
        # The lines before the cursor where passages were retrieved.
        self._line = -math.inf
        self._chunks: Sequence[str] = ()
        self._retrieved = self._prefix = Prefix()
        self._ahead: Sequence[int] = ()
        self._tokens_per_second = 0.0
        # The first search and the first pass take longer than later ones.
        probe = question_of(finetuner.tokenizer, PROBE * (_LEAST_MEASURED // 8))
        prepared = finetuner.prepare(finetuner.retrieve(probe))
        self._trains = any(each.trains for each in finetuner.techniques)
        self._weights = ExitStack()
        if not self._trains:
            changed = finetuner.changed(prepared, Deadline(None))
            self._weights.enter_context(changed)
        self._read(probe.ids)

    def close(self) -> None:
        """Restore the model."""
        self._weights.close()

    def answer(
        self,
        prompt: str | Conversation,
        *,
        suffix: str = "",
        chunks: Sequence[str] = (),
        seconds: float | None = None,
        is_over: Callable[[], bool] = lambda: False,
        max_new_tokens: int,
        **options: Any,
    ) -> str:
        """What the model writes at the cursor.

        Args:
            prompt: as in `question_of`.
            suffix: likewise.
            chunks: texts to read between the retrieved passages and the prompt, the last five.
            seconds: to read in; None for as many as it takes. What cannot be read in time is left
                out: passages, and lines that are far from the cursor. `read_ahead` reads it for the
                next prompt.
            is_over: asked while the model reads: whether nobody wants the answer any more.
            max_new_tokens: at most a quarter of the window.
            options: for ``model.generate``.

        Raises as `TestTimeFinetuner.generate`.
        """
        start = perf_counter()
        finetuner, model = self.finetuner, self.finetuner.language_model
        if suffix and isinstance(prompt, str):
            prompt = self._with_beginning(prompt)
        else:
            self._line = -math.inf
        question = question_of(finetuner.tokenizer, prompt, suffix=suffix)
        max_new_tokens = min(max_new_tokens, model.window // 4)
        options["max_new_tokens"] = max_new_tokens
        if self._trains:
            self.n_read = len(question.ids)
            return str(finetuner.generate(question, **options))
        self._prepare(question, chunks[-_CHUNKS:])
        budget = model.window
        if seconds is not None:
            seconds -= perf_counter() - start
            budget = max(_LEAST_BUDGET, int(seconds * self._tokens_per_second))
        question = question.with_suffix_of(min(_SUFFIX_TOKENS, budget // 2))
        row = self._prefix.row(question, model.window - max_new_tokens)
        self._ahead = row.before_cursor
        self.n_cached = self._prefix.count_read(row.ids)
        self.n_read = len(row.ids) - self.n_cached
        if self.n_read > budget:
            question = question.fitted(budget)
            self.n_cached, self.n_read = 0, len(question.ids)
            prefix = Prefix(mixtures=self._prefix.mixtures)
        else:
            self.read_ahead(is_over)
            if is_over():
                return ""
            prefix = self._prefix
        [text] = continue_questions(model, [question], [prefix], **options)
        return text

    def read_ahead(self, is_over: Callable[[], bool] = lambda: False) -> None:
        """Read what the last prompt needs, until ``is_over``."""
        model, ids = self.finetuner.language_model, self._ahead
        # Autocast keeps its copies of the weights.
        with model.reading():
            while (first := self._prefix.count_read(ids)) < len(ids) - 1:
                size = int(_PIECE_SECONDS * self._tokens_per_second)
                self._read(ids[: first + 1 + max(_LEAST_MEASURED, size)])
                # Some models keep more than keys and values: they read a prompt at once.
                if is_over() or self._prefix.cache is None:
                    return

    def _with_beginning(self, text: str) -> str:
        """A text with what stood before its beginning in the last one, if they are of one file: an
        editor sends so many lines, of which one goes as the cursor moves on."""
        place = self._text.find(text[: min(len(self._text), _BEGINNING_CHARS)])
        # Files may begin alike.
        lines, others = {*text.splitlines()}, {*self._text.splitlines()}
        shared = len(lines & others) / max(1, min(len(lines), len(others)))
        if 0 <= place <= len(text) // 2 and shared >= _SAME_LINES:
            text = self._text[:place] + text
        else:
            self._line = -math.inf
        self._text = text
        return text

    def _prepare(self, question: Question, chunks: Sequence[str]) -> None:
        """Retrieve passages if the cursor is far from where they were retrieved."""
        finetuner, line = self.finetuner, question.text.count("\n")
        if abs(line - self._line) > _NEAR_LINES:
            blocks = finetuner.search and finetuner.search.store
            if isinstance(blocks, LineBlocks):
                source = blocks.source_of(question.text)
                question = replace(question, source=source)
            prepared = finetuner.prepare(finetuner.retrieve(question))
            self._retrieved, self._line = prefix_of(prepared), line
        elif {*chunks} <= {*self._chunks}:
            return
        self._chunks = chunks
        ids_of = finetuner.language_model.passage_ids
        read = [Passage(text, ids_of(text)) for text in chunks]
        passages = [*self._retrieved.passages, *read]
        mixtures = self._retrieved.mixtures
        self._prefix = replace(self._prefix, passages=passages, mixtures=mixtures)

    def _read(self, ids: Sequence[int]) -> None:
        """Read what is new of these tokens, and see how long it takes."""
        count = len(ids) - self._prefix.count_read(ids)
        start = perf_counter()
        model = self.finetuner.language_model
        self._prefix = model.read_on(self._prefix, ids)
        if count >= _LEAST_MEASURED:
            self._tokens_per_second = count / (perf_counter() - start)
