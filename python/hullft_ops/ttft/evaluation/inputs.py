"""Loading the inputs of an evaluation from its configuration."""

from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hullft_ops._terminal import show
from hullft_ops.ttft.evaluation.config import Config, ConfigError, open_experts
from hullft_ops.ttft.evaluation.corpus import (
    Prompt,
    choose_prompts,
    load_corpus,
    normalised,
    open_or_build,
    read_prompts,
)
from hullft_ops.ttft.evaluation.runner import Evaluator
from hullft_ops.ttft.experts.folder import Experts
from hullft_ops.ttft.model.loading import checked_device, load_model
from hullft_ops.ttft.store.datastore import Datastore
from hullft_ops.ttft.store.embedding import Embedder, open_embedder

DATASTORES = "hullft_datastores"


@dataclass(frozen=True)
class Inputs:
    """A model, a datastore, its experts, and the prompts that it does not hold, in order."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    store_path: Path
    store: Datastore
    embedder: Embedder
    experts: Experts | None
    prompts: list[Prompt]

    def evaluator(self, seed: int) -> Evaluator:
        return Evaluator(
            self.model, self.tokenizer, self.store, self.embedder, seed=seed, experts=self.experts
        )


def open_inputs(config: Config, log: Console, *, device: str = "cpu") -> Inputs:
    """Load what ``config`` names, with the model on ``device``. Logs the prompts it leaves out."""
    place = checked_device(device)
    embedder = open_embedder(config.embedder)
    path, store, prompts = _texts(config, embedder, log)
    model, tokenizer = load_model(
        config.model,
        place,
        allow_missing_weights=config.allow_missing_weights,
        say=partial(show, log),
    )
    experts = open_experts(config.experts)
    chosen = _unknown_prompts(prompts, store, embedder, config, log)
    counts = sorted(Counter(prompt.domain for prompt in chosen).items())
    domains = ", ".join(f"{name}: {count}" for name, count in counts)
    show(log, f"{len(chosen)} prompts ({domains}), datastore of {len(store)} texts")
    return Inputs(model, tokenizer, path, store, embedder, experts, chosen)


def open_store(path: Path) -> Datastore:
    """The datastore at ``path``; a `ConfigError` says why it cannot be opened."""
    try:
        return Datastore.open(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"store {path}: {error}") from error


def _unknown_prompts(
    prompts: list[Prompt], store: Datastore, embedder: Embedder, config: Config, log: Console
) -> list[Prompt]:
    """As many prompts as the configuration says, without those whose nearest text is the prompt."""
    ranked = choose_prompts(prompts, len(prompts), config.seed)
    limit = len(ranked) if config.limit is None else config.limit
    chosen: list[Prompt] = []
    looked_at = 0
    # Embedding takes time, so look at no more prompts than necessary.
    while len(chosen) < limit and looked_at < len(ranked):
        some = ranked[looked_at : looked_at + limit - len(chosen)]
        _, nearest = store.search(embedder.encode([prompt.text for prompt in some]), 1)
        for prompt, position in zip(some, nearest[:, 0].tolist(), strict=True):
            if normalised(store.texts[position]) != normalised(prompt.text):
                chosen.append(prompt)
        looked_at += len(some)
    if looked_at > len(chosen):
        log.print(f"{looked_at - len(chosen)} prompts left out: the datastore holds their text")
    if not chosen:
        raise ConfigError(
            "no prompt is left, the datastore holds the text of all of them"
            if ranked
            else "the corpus holds out no text that is long enough for a prompt"
        )
    if config.limit is not None and len(chosen) < config.limit:
        raise ConfigError(f"limit is {config.limit}, there are {len(chosen)} prompts")
    return chosen


def _texts(
    config: Config, embedder: Embedder, log: Console
) -> tuple[Path, Datastore, list[Prompt]]:
    if (config.store is None) != (config.prompts is None):
        raise ConfigError("store and prompts must be given together")
    if config.store is None or config.prompts is None:
        corpus = load_corpus(config.corpus, log)
        path = Path(DATASTORES) / corpus.fingerprint(embedder.name)[:16]
        store, _ = open_or_build(corpus, embedder, path, log)
        return path, store, [Prompt(prompt.text) for prompt in corpus.held_out]
    if config.corpus is not None:
        raise ConfigError("corpus must not be given along with store and prompts")
    prompts = read_prompts(config.prompts)
    return config.store, open_store(config.store), prompts
