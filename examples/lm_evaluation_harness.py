"""lm-evaluation-harness with a model, ``hullft``, that adapts to each document before it answers.

    python examples/lm_evaluation_harness.py run --model hullft \
        --model_args pretrained=gpt2,store=store,n_select=10 --tasks arc_easy --device cpu

This is the harness's own command with one model more; docs/guides/lm_eval.md says how it adapts.
"""

import os.path
import sys
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lm_eval.__main__ import cli_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from tqdm import tqdm

from hullft_ops.ttft import (
    Datastore,
    InputError,
    Passage,
    TestTimeFinetuner,
    TTFTConfig,
    load_embedder,
    load_model,
)
from hullft_ops.ttft.prefix import nearest_that_fit


@register_model("hullft")
class HullftLM(HFLM):
    """`HFLM` that adapts to each document of a task while it answers the document's requests.

    Args:
        pretrained: any name that `load_model` takes.
        device: device of the model.
        batch_size: how many requests of a document to answer at once.
        store: a datastore's folder; None for the answers of `HFLM`, or with an adapter alone.
        embedder: name of the embedder that the datastore was made with; None for the default.
        options: fields of `TTFTConfig`, where ``max_length`` also limits what the model reads, and
            ``ngrams`` must be 0.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        *,
        device: str = "cpu",
        batch_size: int = 1,
        store: str | None = None,
        embedder: str | None = None,
        **options: Any,
    ) -> None:
        config = TTFTConfig(**{"ngrams": 0} | options)
        if config.ngrams:
            raise InputError("ngrams must be 0: the harness reads the model's logits")
        if store is None and (config.n_select or config.context):
            raise InputError(
                "store must be given for n_select or context above 0; `hullft-ops index` makes one"
            )
        model, tokenizer = load_model(pretrained, device)
        super().__init__(
            model,
            tokenizer=tokenizer,
            max_length=config.max_length,
            batch_size=batch_size,
        )
        self.finetuner = self.embedder = passages = None
        if store is not None:
            passages = Datastore.open(store)
            self.embedder = load_embedder(embedder) if embedder else load_embedder()
        if store is not None or config.adapter is not None:
            self.finetuner = TestTimeFinetuner(
                model, tokenizer, passages, self.embedder, config
            )

    def set_cache_hook(self, cache_hook: Any) -> None:
        """The harness caches the answers at the end: after a kill amid a document, the rest of its
        requests would share another question."""

    def loglikelihood(self, requests: list[Instance]) -> list[Any]:
        return self.by_document(requests)

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[Any]:
        return self.by_document(requests)

    def generate_until(self, requests: list[Instance]) -> list[Any]:
        return self.by_document(requests)

    def by_document(self, requests: list[Instance]) -> list[Any]:
        if self.finetuner is None:
            return self.plain_answers(requests)
        places = defaultdict(list)
        for place, request in enumerate(requests):
            # Those without a context ask how likely an answer is by itself.
            has_context = bool(request.args[0].strip())
            places[request.task_name, request.doc_id, has_context].append(place)
        answers = {}
        for document in tqdm(places.values(), "hullft"):
            results = self.adapted_answers([requests[place] for place in document])
            answers |= zip(document, results, strict=True)
        return [answers[place] for place in range(len(requests))]

    def plain_answers(self, requests: list[Instance]) -> list[Any]:
        """The answers of `HFLM`, with a progress bar unless there is another."""
        answer = getattr(super(), requests[0].request_type)
        return list(answer(requests, disable_tqdm=self.finetuner is not None))

    def adapted_answers(self, requests: list[Instance]) -> list[Any]:
        """The answers to a document's requests by the model adapted to their question."""
        contexts = [request.args[0] for request in requests]
        # Where the contexts hold the choices, the question is what they share.
        question = os.path.commonprefix(contexts)  # noqa: RUF071 - they are no paths
        if not question.strip():
            warnings.warn(
                "hullft: requests without a question get the model as it is",
                stacklevel=2,
            )
            return self.plain_answers(requests)
        is_text = requests[0].request_type == "loglikelihood_rolling"
        if not is_text and self.embedder is not None:
            question = self.end_within(question)
        with self.finetuner.adapted(question) as adaptation:
            if not is_text:
                requests = self.behind(adaptation.passages, requests)
            return self.plain_answers(requests)

    def end_within(self, text: str) -> str:
        """As much of the end as the embedder reads: few-shot examples come first."""
        encoding = self.embedder.tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        begin, _ = encoding["offset_mapping"][-self.embedder.max_tokens :][0]
        return text[begin:]

    def behind(
        self, passages: Sequence[Passage], requests: list[Instance]
    ) -> list[Instance]:
        """The requests with retrieved passages, nearest last, before their contexts.

        The farthest go until there is room for the answer.
        """
        contexts = [request.args[0] for request in requests]
        longest = max(len(self.tok_encode(context)) for context in contexts)
        room = self.max_length - longest - self.max_gen_toks
        texts = [passage.text for passage in nearest_that_fit(passages, room)]
        # A chat template opens with this token.
        bos = self.tokenizer.bos_token or ""
        others = []
        for request, context in zip(requests, contexts, strict=True):
            opening = bos if context.startswith(bos) else ""
            context = "".join([opening, *texts, context.removeprefix(opening)])
            arguments = (context, *request.args[1:])
            others.append(replace(request, arguments=arguments))
        return others


def main() -> None:
    try:
        cli_evaluate()
    except InputError as error:
        sys.exit(f"lm_evaluation_harness.py: {error}")


if __name__ == "__main__":
    main()
