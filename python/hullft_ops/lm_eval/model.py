"""A model of the harness that adapts to each document before it answers."""

import logging
import os.path
import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from hullft_ops.ttft.experts.folder import Experts
from hullft_ops.ttft.finetuner import TestTimeFinetuner
from hullft_ops.ttft.model.prefix import fitting, prefix_room
from hullft_ops.ttft.retrieval.methods import SelectionMethod
from hullft_ops.ttft.retrieval.support import SEPARATOR
from hullft_ops.ttft.store.base import Store
from hullft_ops.ttft.store.datastore import Datastore
from hullft_ops.ttft.store.embedding import (
    DEFAULT_EMBEDDER,
    Embedder,
    SentenceTransformerEmbedder,
    open_embedder,
)
from hullft_ops.ttft.tiny import PAPER_LR

_log = logging.getLogger(__name__)


@register_model("hullft")
class HullftLM(HFLM):  # type: ignore[misc]
    """`HFLM` that adapts to each document of a task while it answers the document's requests.

    Retrieval reads the question: the context of the requests, or the beginning that different
    contexts share. Of a long one it reads the end, because examples stand before the question. For
    ``loglikelihood_rolling`` it reads the text itself, as the paper does. All requests of a
    document share one adaptation. Requests with an empty context get the model as it is.

    Texts of the datastore go before each context, nearest last, as many as fit, and before each
    window of ``loglikelihood_rolling``. Without steps, texts in the context and experts, it is
    `HFLM`.

    Args:
        pretrained: as in `HFLM`, like all arguments that do not stand here.
        store: a datastore or its directory.
        embedder: the embedder that built it, or its name.
        method, n_select, refresh, pool_size, lr, context, n_experts: as in `TestTimeFinetuner`.
        experts: experts of the model and the datastore, or their folder.
        seconds: budget for each adaptation, as in `TestTimeFinetuner.adapted`; None for no limit.
        max_length: tokens that the model reads at once, as in `HFLM`, and tokens of a text to train
            on; None for the model's context.

    Raises:
        TypeError, ValueError: as `TestTimeFinetuner`; or there is something to adapt with, but no
            store, or the batch size is "auto".
    """

    # `HFLM`'s, which has no types.
    cache_hook: Any
    _world_size: int
    _finetuner: TestTimeFinetuner | None = None

    def __init__(
        self,
        pretrained: Any,
        *,
        store: str | Path | Store | None = None,
        embedder: str | Embedder = DEFAULT_EMBEDDER,
        method: str | SelectionMethod = "hullft",
        n_select: int = 50,
        refresh: int = 2,
        pool_size: int = 200,
        lr: float = PAPER_LR,
        context: int = 0,
        experts: str | Path | Experts | None = None,
        n_experts: int = 4,
        seconds: float | None = None,
        max_length: int | None = None,
        **kwargs: Any,
    ) -> None:
        adapts = bool(n_select or context or (experts is not None and n_experts))
        if adapts and store is None:
            raise ValueError(
                "hullft: store must be given for n_select or context above 0, or for experts, got "
                "none; `hullft-ops index` makes one"
            )
        super().__init__(pretrained, max_length=max_length, **kwargs)
        self._seconds = seconds
        if not adapts or store is None:
            return
        if self.batch_size == "auto":
            raise ValueError(
                "hullft: batch_size must be a number to adapt to documents, got auto: "
                "batches hold requests of one document"
            )
        self._embedder = (
            open_embedder(embedder) if isinstance(embedder, str) else embedder
        )
        self._finetuner = TestTimeFinetuner(
            self.model,
            self.tokenizer,
            Datastore.open(store) if isinstance(store, str | Path) else store,
            self._embedder,
            n_select=n_select,
            refresh=refresh,
            method=method,
            pool_size=pool_size,
            lr=lr,
            max_length=max_length,
            context=context,
            experts=Experts.open(experts)
            if isinstance(experts, str | Path)
            else experts,
            n_experts=n_experts,
        )

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> Any:
        return self._by_document(super().loglikelihood, requests, disable_tqdm)

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> Any:
        return self._by_document(super().loglikelihood_rolling, requests, disable_tqdm)

    def generate_until(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> Any:
        return self._by_document(super().generate_until, requests, disable_tqdm)

    def _by_document(
        self,
        answer: Callable[..., list[Any]],
        requests: list[Instance],
        disable_tqdm: bool,
    ) -> list[Any]:
        if self._finetuner is None:
            return answer(requests, disable_tqdm=disable_tqdm)
        answers: list[Any] = [None] * len(requests)
        hidden = disable_tqdm or self.rank != 0
        shown = tqdm(
            documents(requests), desc=f"hullft: {answer.__name__}", disable=hidden
        )
        # The cache gets a document's answers together: a run that goes on after a kill would take
        # a single choice for the question. Ranks have different numbers of documents, so they
        # must not wait for each other in each.
        hook, ranks = self.cache_hook, self._world_size
        self.cache_hook, self._world_size = CacheHook(None), 1
        try:
            for question, places in shown:
                some = [requests[place] for place in places]
                if question is None:
                    _log.warning(
                        "hullft: %d of %d requests get the model as it is: their contexts are "
                        "empty, or those of a document have no beginning in common",
                        len(some),
                        len(requests),
                    )
                found = self._answers(answer, some, question)
                for place, request, one in zip(places, some, found, strict=True):
                    answers[place] = one
                    hook.add_partial(request.request_type, request.args, one)
        finally:
            self.cache_hook, self._world_size = hook, ranks
        return answers

    def _answers(
        self,
        answer: Callable[..., list[Any]],
        requests: list[Instance],
        question: str | None,
    ) -> list[Any]:
        finetuner = self._finetuner
        if finetuner is None or question is None:
            return answer(requests, disable_tqdm=True)
        is_rolling = requests[0].request_type == "loglikelihood_rolling"
        if not is_rolling:
            question = readable_end(question, self._embedder)
        with finetuner.adapted(question, seconds=self._seconds) as report:
            nearest = [
                finetuner.store.texts[i] + SEPARATOR
                for i in report.context_indices[::-1]
            ]
            tokens = (
                list(self.tok_encode(text, add_special_tokens=False))
                for text in nearest
            )
            longest = max(map(self._length, requests))
            room = self.max_length - longest
            if is_rolling:
                # One token stands before all texts.
                room = prefix_room(self.max_length, longest, 1)
            fit = fitting(tokens, room)
            if is_rolling and fit:
                ids = [token for text in fit[::-1] for token in text]
                return [
                    self._rolling_behind(ids, request.args[0]) for request in requests
                ]
            text = "".join(nearest[: len(fit)][::-1])
            behind = [
                replace(r, arguments=(text + r.args[0], *r.args[1:])) for r in requests
            ]
            return answer(behind, disable_tqdm=True)

    def _rolling_behind(self, before: list[int], text: str) -> float:
        """The likelihood of the text's tokens in windows, each behind the tokens ``before``."""
        windows = get_rolling_token_windows(
            self.tok_encode(text),
            self.prefix_token_id,
            self.max_length - len(before),
            1,
        )
        parts = [
            # The token that opens a text opens the first of all.
            (None, [*before, *read] if place else [*read, *before], scored)
            for place, (read, scored) in enumerate(map(make_disjoint_window, windows))
        ]
        found = self._loglikelihood_tokens(parts, disable_tqdm=True)
        return float(sum(value for value, _ in found))

    def _length(self, request: Instance) -> int:
        """Tokens of the context and a continuation, or as many as may be generated."""
        if request.request_type != "generate_until":
            return len(self.tok_encode("".join(request.args)))
        context, options = request.args
        new = int(normalize_gen_kwargs(options, self.max_gen_toks)["max_gen_toks"])
        return len(self.tok_encode(context)) + new


def documents(requests: Sequence[Instance]) -> list[tuple[str | None, list[int]]]:
    """The question of each document, and the positions of the requests that share it.

    Requests with an empty context, which ask how likely an answer is by itself, have no question.
    """
    places: dict[Hashable, list[int]] = {}
    for place, request in enumerate(requests):
        key: Hashable = None
        if request.args[0].strip():
            key = (
                place if request.doc_id is None else (request.task_name, request.doc_id)
            )
        places.setdefault(key, []).append(place)
    found: dict[Hashable, tuple[str | None, list[int]]] = {}
    for key, members in places.items():
        shared = question([requests[i].args[0] for i in members])
        found.setdefault(key if shared else None, (shared, []))[1].extend(members)
    return [(shared, sorted(members)) for shared, members in found.values()]


def question(contexts: Sequence[str]) -> str | None:
    """What the contexts of a document have in common before any choice; None if nothing."""
    shared = os.path.commonprefix(list(contexts))  # noqa: RUF071 - they are no paths
    if any(context != shared for context in contexts):
        # Choices may begin with the same letters, so the last word may belong to a choice.
        shared = re.sub(r"\w+\Z", "", shared)
    return shared if shared.strip() else None


def readable_end(text: str, embedder: Embedder) -> str:
    """As much of the end of the text as the embedder reads, which would read the beginning."""
    if (
        not isinstance(embedder, SentenceTransformerEmbedder)
        or embedder.max_tokens is None
    ):
        return text
    tokenizer, limit = embedder.tokenizer, embedder.max_tokens
    encoding = tokenizer(
        text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    places = encoding["offset_mapping"]
    return text if len(places) <= limit else text[places[-limit][0] :]
