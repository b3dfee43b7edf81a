"""What an evaluation runs on, loaded from a configuration."""

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hullft_ops.ttft.datastore import Datastore
from hullft_ops.ttft.demo_inputs import load_corpus, load_model, open_embedder, open_or_build
from hullft_ops.ttft.embedding import Embedder
from hullft_ops.ttft.evaluation.config import Config, ConfigError
from hullft_ops.ttft.evaluation.prompts import (
    Prompt,
    count_domains,
    draw_prompts,
    read_prompts,
)
from hullft_ops.ttft.evaluation.runner import Evaluator

DATASTORES = "hullft_datastores"


@dataclass(frozen=True)
class Inputs:
    """A model, a datastore, and the prompts that the datastore does not hold, in their order."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    store: Datastore
    embedder: Embedder
    prompts: list[Prompt]

    def evaluator(self, seed: int) -> Evaluator:
        return Evaluator(self.model, self.tokenizer, self.store, self.embedder, seed=seed)


def open_inputs(config: Config, log: Console) -> Inputs:
    """Load what ``config`` names; says on ``log`` what it left out.

    Raises:
        ConfigError, DemoError: something cannot be loaded; the message says which.
    """
    embedder = open_embedder(config.embedder)
    store, prompts = _texts(config, embedder, log)
    model, tokenizer = load_model(config.model)
    inputs = Inputs(model, tokenizer, store, embedder, prompts)
    known = inputs.evaluator(config.seed).in_store(prompts)
    if known:
        log.print(f"{len(known)} prompts left out: the datastore holds their text")
    unknown = [prompt for prompt in prompts if prompt.id not in known]
    chosen = draw_prompts(unknown, config.limit, config.seed)
    domains = ", ".join(f"{name}: {count}" for name, count in count_domains(chosen).items())
    log.print(f"{len(chosen)} prompts ({domains}), datastore of {len(store)} texts")
    return Inputs(model, tokenizer, store, embedder, chosen)


def _texts(config: Config, embedder: Embedder, log: Console) -> tuple[Datastore, list[Prompt]]:
    if config.store is not None and config.prompts is not None:
        prompts = read_prompts(config.prompts)
        try:
            return Datastore.open(config.store), prompts
        except (OSError, ValueError) as error:
            raise ConfigError(f"store {config.store}: {error}") from error
    corpus = load_corpus(config.corpus, log)
    path = Path(DATASTORES) / corpus.fingerprint(embedder.name)[:16]
    store, _ = open_or_build(corpus, embedder, path, log)
    return store, [Prompt(passage.text) for passage in corpus.held_out]
