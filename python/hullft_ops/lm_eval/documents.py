"""The documents that requests of the harness belong to, and the question of each."""

import os.path
import re
from collections.abc import Hashable, Sequence

from lm_eval.api.instance import Instance

from hullft_ops.ttft.store.embedding import Embedder, SentenceTransformerEmbedder


def documents(requests: Sequence[Instance]) -> list[tuple[str | None, list[int]]]:
    """The question of each document, and the positions of the requests that share it.

    A document is a task and a ``doc_id``. A request without a ``doc_id`` is one of its own.
    Requests with an empty context ask how likely an answer is by itself, so they have no question.
    All of these come together, as one document with None. The order is that of first requests.
    """
    places: dict[Hashable, list[int]] = {}
    for place, request in enumerate(requests):
        key: Hashable = None
        if request.args[0].strip():
            key = place if request.doc_id is None else (request.task_name, request.doc_id)
        places.setdefault(key, []).append(place)
    found: dict[Hashable, tuple[str | None, list[int]]] = {}
    for key, members in places.items():
        shared = None if key is None else question([requests[i].args[0] for i in members])
        found.setdefault(key if shared else None, (shared, []))[1].extend(members)
    return [(shared, sorted(members)) for shared, members in found.values()]


def question(contexts: Sequence[str]) -> str | None:
    """What the contexts of a document have in common before any choice; None if nothing.

    Contexts differ where they hold the choices. The choices may begin with the same letters, so
    the word that the difference interrupts does not belong to the question.
    """
    shared = os.path.commonprefix(list(contexts))  # noqa: RUF071 - they are no paths
    if any(context != shared for context in contexts):
        shared = re.sub(r"\w+\Z", "", shared)
    return shared if shared.strip() else None


def readable_end(text: str, embedder: Embedder) -> str:
    """As much of the end of the text as the embedder reads. By itself it reads the beginning."""
    if not isinstance(embedder, SentenceTransformerEmbedder):
        return text
    tokenizer = embedder.tokenizer
    limit = tokenizer.model_max_length - tokenizer.num_special_tokens_to_add()
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    places = encoding["offset_mapping"]
    return text if len(places) <= limit else text[places[-limit][0] :]
