"""A model of the harness that adapts to each document before it answers."""

import os.path
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from tqdm import tqdm

from hullft_ops.ttft import (
    Datastore,
    Embedder,
    Store,
    TestTimeFinetuner,
    TTFTConfig,
    load_embedder,
    load_model,
)
from hullft_ops.ttft.embedding import DEFAULT_EMBEDDER
from hullft_ops.ttft.reader import nearest_that_fit


@register_model("hullft")
class HullftLM(HFLM):  # type: ignore[misc]
    """`HFLM` that adapts to each document of a task while it answers the document's requests.

    Retrieval reads the question: the context of the requests, or the beginning that different
    contexts share. Of a long one it reads the end, because few-shot examples come first. For
    ``loglikelihood_rolling`` it reads the text itself, as in the paper. All requests of a document
    share one adaptation. Requests with an empty context get the model as it is.

    Retrieved passages stand before each context, nearest last, as many as leave room for 256 more
    tokens. The texts of ``loglikelihood_rolling`` stand alone.

    Args:
        pretrained: any name that `load_model` takes, or a model.
        tokenizer: the tokenizer of a model that is not a name.
        device: device of a model given by name.
        batch_size: how many requests of a document to answer at once.
        store: a datastore or its folder; None, with n_select and context 0, for the answers of
            `HFLM`.
        embedder: the embedder that the store was made with, or its name.
        seconds: budget for each adaptation, as in `TestTimeFinetuner.adapted`.
        options: fields of `TTFTConfig`, where ``max_length`` also limits what the model reads at
            once, and ``ngrams`` must be 0.

    Raises:
        TypeError, ValueError: as `TestTimeFinetuner` and `load_model`; an argument is unknown; or
            there is something to adapt with, but no store, or the batch size is "auto".
    """

    _finetuner: TestTimeFinetuner | None = None

    def __init__(
        self,
        pretrained: Any = None,
        *,
        tokenizer: Any = None,
        device: str = "cpu",
        batch_size: int | str = 1,
        store: str | Path | Store | None = None,
        embedder: str | Embedder = DEFAULT_EMBEDDER,
        seconds: float | None = None,
        **options: Any,
    ) -> None:
        config = TTFTConfig(**{"ngrams": 0} | options)
        if config.ngrams:
            raise ValueError(
                "hullft: ngrams must be 0: the harness reads the model's own logits"
            )
        if store is None and (config.n_select or config.context or config.adapter):
            raise ValueError(
                "hullft: store must be given for n_select or context above 0, or an "
                "adapter, got none; `hullft-ops index` makes a store"
            )
        if batch_size == "auto" and store is not None:
            raise ValueError(
                "hullft: batch_size must be a number to adapt to documents, got auto: "
                "a batch holds requests of one document"
            )
        if pretrained is None or isinstance(pretrained, str | Path):
            pretrained, tokenizer = load_model(pretrained, device)
        super().__init__(
            pretrained,
            tokenizer=tokenizer,
            max_length=config.max_length,
            batch_size=batch_size,
        )
        if store is None:
            return
        if isinstance(store, str | Path):
            store = Datastore.open(store)
        if isinstance(embedder, str):
            embedder = load_embedder(embedder)
        self._seconds = seconds
        self._embedder = embedder
        self._finetuner = TestTimeFinetuner(
            self.model, self.tokenizer, store, embedder, config
        )

    def set_cache_hook(self, cache_hook: Any) -> None:
        """The harness caches the answers at the end: after a kill amid a document, the rest of its
        requests would share another question."""

    def loglikelihood(self, requests: list[Instance]) -> list[Any]:
        return self._by_document(requests)

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[Any]:
        return self._by_document(requests)

    def generate_until(self, requests: list[Instance]) -> list[Any]:
        return self._by_document(requests)

    def _by_document(self, requests: list[Instance]) -> list[Any]:
        if self._finetuner is None:
            return self._plain_answers(requests)
        answers: dict[int, Any] = {}
        for places in tqdm(documents(requests), "hullft"):
            document = [requests[place] for place in places]
            results = self._adapted_answers(self._finetuner, document)
            answers |= zip(places, results, strict=True)
        return [answers[place] for place in range(len(requests))]

    def _plain_answers(self, requests: list[Instance]) -> list[Any]:
        """The answers of `HFLM`, with a progress bar unless there is another."""
        answer = getattr(super(), requests[0].request_type)
        return list(answer(requests, disable_tqdm=self._finetuner is not None))

    def _adapted_answers(
        self, finetuner: TestTimeFinetuner, requests: list[Instance]
    ) -> list[Any]:
        """The answers to a document's requests by the model adapted to their question."""
        contexts = [request.args[0] for request in requests]
        question = os.path.commonprefix(contexts)  # noqa: RUF071 - they are no paths
        if not question.strip():
            warnings.warn(
                "hullft: requests without a question get the model as it is",
                stacklevel=2,
            )
            return self._plain_answers(requests)
        longest = max(len(self.tok_encode(context)) for context in contexts)
        room = self.max_length - longest - self.max_gen_toks
        if requests[0].request_type == "loglikelihood_rolling":
            room = 0
            if finetuner.config.context:
                warnings.warn(
                    "hullft: no retrieved passages stand before the texts of "
                    "loglikelihood_rolling",
                    stacklevel=2,
                )
        else:
            question = end_within(question, self._embedder)
        with finetuner.adapted(question, seconds=self._seconds) as adaptation:
            support = adaptation.support
            dropped = len(support.context_ids) - len(
                nearest_that_fit(support.context_ids, room)
            )
            passages = support.context_texts[dropped:]
            requests_behind = []
            for request in requests:
                context = with_passages(
                    passages, request.args[0], self.tokenizer.bos_token
                )
                arguments = (context, *request.args[1:])
                requests_behind.append(replace(request, arguments=arguments))
            return self._plain_answers(requests_behind)


def documents(requests: list[Instance]) -> list[list[int]]:
    """The positions of the requests that belong together: those of a document, and those without a
    context, which ask how likely an answer is by itself."""
    places = defaultdict(list)
    for place, request in enumerate(requests):
        key = (request.task_name, request.doc_id)
        places[key if request.args[0].strip() else None].append(place)
    return list(places.values())


def with_passages(passages: Sequence[str], context: str, bos_token: str | None) -> str:
    """The context behind the passages. Both stand behind the token that opens a chat template."""
    opening = bos_token if bos_token and context.startswith(bos_token) else ""
    return "".join([opening, *passages, context.removeprefix(opening)])


def end_within(text: str, embedder: Any) -> str:
    """As much of the end of the text as the embedder reads, which would read the beginning."""
    limit = getattr(embedder, "max_tokens", None)
    if limit is None:
        return text
    encoding = embedder.tokenizer(
        text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    begin, _ = encoding["offset_mapping"][-limit:][0]
    return text[begin:]
