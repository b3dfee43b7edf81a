"""Measuring configurations on held-out prompts: a row for each pair of them."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hullft_ops._terminal import counted, listed
from hullft_ops.collect_env import versions_of
from hullft_ops.evaluation.experiment import Experiment, label, settings_of
from hullft_ops.evaluation.prompts import (
    Prompt,
    choose_prompts,
    hold_out,
    installed_documents,
    not_in_store,
    read_documents,
    read_prompts,
)
from hullft_ops.evaluation.results import STAGES, Row, Score
from hullft_ops.evaluation.scores import scores_of
from hullft_ops.ttft.adaptation import Adaptation
from hullft_ops.ttft.config import TTFTConfig
from hullft_ops.ttft.embedding import Embedder, load_embedder
from hullft_ops.ttft.errors import InputError, NonFiniteLossError
from hullft_ops.ttft.finetuner import TestTimeFinetuner
from hullft_ops.ttft.identity import model_identity
from hullft_ops.ttft.models.memory import return_freed_memory
from hullft_ops.ttft.scoring import score_text
from hullft_ops.ttft.store.base import Store
from hullft_ops.ttft.store.datastore import Datastore

# The folder of the datastores of corpora.
DATASTORES = Path("hullft_datastores")
# Prompts of a corpus if no limit is given: minutes on two cores.
LIMIT = 10
_PACKAGES = ("hullft_ops", "torch", "transformers", "tokenizers", "faiss-cpu")
# Tokenizers with one vocabulary may merge, normalise and prefix text differently.
_SENTENCE = "Naïve  TOKENS of x_1 = 3.14;\n\tİt's 10,000 日本 🙂"
# What a row holds if its training failed.
_LOST: dict[str, Any] = {"scores": {}, "seconds": {}, "passes": 0}
# A prompt, and the labels of the configurations to measure on it.
Task = tuple[Prompt, list[str]]


@dataclass(frozen=True)
class Evaluation:
    """The models and texts of an experiment, loaded.

    Attributes:
        run: identity of model, tokenizer, datastore, embedder and seed.
        prompts: those that the datastore does not hold.
        notes: lines that say where they come from.
        configs: the configurations by their labels.
    """

    run: str
    seed: int
    prompts: list[Prompt]
    notes: list[str]
    configs: dict[str, TTFTConfig]
    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    store: Datastore
    embedder: Embedder

    def finetuner(self, config: TTFTConfig) -> TestTimeFinetuner:
        """A finetuner with that configuration.

        Each training takes a new one: it holds three times the trained parameters once it has
        adapted.
        """
        return TestTimeFinetuner(
            self.model,
            self.tokenizer,
            self.store,
            self.embedder,
            config,
        )


def load_evaluation(
    experiment: Experiment, *, datastores: Path = DATASTORES
) -> Evaluation:
    """Load what an experiment names. A corpus's datastore is in ``datastores``, or is built there.

    Raises:
        InputError, OSError: something cannot be loaded, or no prompt is left.
    """
    configs = experiment.configs()
    # First what is soon refused: embedding a corpus takes long.
    model, tokenizer = experiment.load()
    embedder = load_embedder(experiment.embedder)
    store, prompts, notes = open_texts(experiment, embedder, datastores)
    evaluation = Evaluation(
        run=run_identity(model, tokenizer, store, experiment.seed),
        seed=experiment.seed,
        prompts=prompts,
        notes=notes,
        configs={label(config): config for config in configs},
        model=model,
        tokenizer=tokenizer,
        store=store,
        embedder=embedder,
    )
    for config in configs:
        # A configuration that does not fit the models is refused before the work.
        evaluation.finetuner(config)
    return evaluation


def open_texts(
    experiment: Experiment, embedder: Embedder, datastores: Path
) -> tuple[Datastore, list[Prompt], list[str]]:
    """An experiment's datastore, prompts that it does not hold, and where they come from."""
    limit, seed = experiment.limit, experiment.seed
    if experiment.store is not None and experiment.prompts is not None:
        store = Datastore.open(experiment.store)
        prompts = not_in_store(read_prompts(experiment.prompts), store, embedder)
        return store, choose_prompts(prompts, limit, seed), []
    if experiment.store is not None or experiment.prompts is not None:
        raise InputError("store and prompts must be given together")
    corpus, skipped = experiment.corpus, list[str]()
    documents = read_documents(corpus, skipped) if corpus else installed_documents()
    split = hold_out(documents)
    if not (split.prompts and split.passages):
        raise InputError(
            f"corpus {corpus}: {counted(len(documents), 'document')}, too few to hold one out; "
            f"skipped: {listed(skipped) or 'none'}"
        )
    total = len(split.prompts)
    prompts = choose_prompts(split.prompts, limit or min(LIMIT, total), seed)
    domains = list(dict.fromkeys(prompt.domain for prompt in prompts))
    notes = [f"{len(prompts)} of {total} held-out prompts, of {listed(domains)}"]
    if limit is None and len(prompts) < total:
        notes.append("--limit takes more prompts")
    if skipped:
        notes.append(f"{corpus}: {len(skipped)} skipped ({listed(skipped)})")
    path = datastores / split.digest(embedder.name)
    if not path.exists():
        sources = list(split.passages.values())
        Datastore.build(split.passages, embedder, path, sources=sources)
    return Datastore.open(path), prompts, notes


def missing(evaluation: Evaluation, rows: Mapping[tuple[str, str], Row]) -> list[Task]:
    """Each prompt with the configurations that have no row yet, in the order to run them."""
    labels = list(evaluation.configs)
    tasks: list[Task] = []
    for number, prompt in enumerate(evaluation.prompts):
        # Each prompt begins with another configuration, so that none always runs first.
        first = number % len(labels)
        rotated = labels[first:] + labels[:first]
        left = [config for config in rotated if (prompt.id, config) not in rows]
        if left:
            tasks.append((prompt, left))
    return tasks


def measure_tasks(evaluation: Evaluation, tasks: list[Task]) -> Iterator[Row]:
    """The rows of all tasks, after one that pays for allocations and thread pools."""
    for prompt, labels in tasks[:1]:
        list(measure(evaluation, (prompt, labels[:1])))
    for task in tasks:
        yield from measure(evaluation, task)


def measure(evaluation: Evaluation, task: Task) -> Iterator[Row]:
    """A row for each configuration on one prompt.

    Raises:
        ValueError: the prompt cannot be scored, or a setting does not fit the datastore.
        NonFiniteLossError: the loss of the model without adaptation is not finite.
    """
    prompt, labels = task
    # By the length of the scored windows, which is the same unless the model states none.
    before: dict[int, dict[str, float]] = {}
    for configs in _trainings([evaluation.configs[config] for config in labels]):
        most = max(config.context for config in configs)
        finetuner = evaluation.finetuner(replace(configs[0], context=most))
        if finetuner.window not in before:
            score = partial(
                score_text,
                finetuner.model,
                finetuner.tokenizer,
                max_length=finetuner.window,
            )
            before[finetuner.window] = scores_of(prompt, score)
        yield from _rows(
            evaluation, finetuner, configs, prompt, before[finetuner.window]
        )
        del finetuner
        return_freed_memory()


def _trainings(configs: list[TTFTConfig]) -> list[list[TTFTConfig]]:
    """Groups that one training serves: they differ in passes and context alone.

    Each is by rising passes, and then by falling context.
    """
    groups = defaultdict(list)
    for config in configs:
        groups[label(replace(config, passes=None, context=0))].append(config)
    for group in groups.values():
        group.sort(key=lambda config: (config.passes or inf, -config.context))
    return list(groups.values())


def _rows(
    evaluation: Evaluation,
    finetuner: TestTimeFinetuner,
    configs: list[TTFTConfig],
    prompt: Prompt,
    before: dict[str, float],
) -> list[Row]:
    """The rows of one training."""
    context = finetuner.config.context
    support = finetuner.select(prompt.text)
    shared: dict[str, Any] = {
        "run": evaluation.run,
        "prompt": prompt.id,
        "domain": prompt.domain,
        "seed": evaluation.seed,
        "support_size": len(support.indices),
        "versions": versions_of(_PACKAGES) | {"device": finetuner.model.device.type},
        "threads": torch.get_num_threads(),
    }
    measured: list[dict[str, Any]] = []
    try:
        with finetuner.adapted(support) as adaptation:
            for config in configs:
                if measured:
                    adaptation.train(config.passes)
                if config.context != context:
                    context = config.context
                    adaptation.read(context)
                measured.append(_measured(adaptation, prompt, before))
    except NonFiniteLossError as failure:
        lost = _LOST | {"error": str(failure)}
        measured += [lost] * (len(configs) - len(measured))
    return [
        Row(**shared, **fields, config=label(config), settings=settings_of(config))
        for config, fields in zip(configs, measured, strict=True)
    ]


def _measured(
    adaptation: Adaptation, prompt: Prompt, before: dict[str, float]
) -> dict[str, Any]:
    """What a row says of an adaptation."""
    after = scores_of(prompt, adaptation.score)
    return {
        "scores": {
            name: Score(before=before[name], after=after[name]) for name in before
        },
        "seconds": {stage: adaptation.seconds.get(stage, 0.0) for stage in STAGES},
        "passes": adaptation.passes,
        "error": None,
    }


def run_identity(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    store: Store,
    seed: int,
) -> str:
    """Differs if any weight, the tokenizer, a text, an embedding or the seed does."""
    tokens = tokenizer(_SENTENCE)["input_ids"]
    vocabulary = sorted(tokenizer.get_vocab().items())
    about = [
        model_identity(model),
        vocabulary,
        tokens,
        store.identity,
        store.embedder,
        seed,
    ]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]
