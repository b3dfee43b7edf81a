"""Measuring configurations on held-out prompts: a row for each pair of them."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from math import inf
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hullft_ops._terminal import progress_line
from hullft_ops.evaluation.experiment import Experiment, label, settings_of
from hullft_ops.evaluation.prompts import Prompt, open_texts
from hullft_ops.evaluation.results import STAGES, Row, Score
from hullft_ops.evaluation.scores import scores_of
from hullft_ops.ttft.config import TTFTConfig
from hullft_ops.ttft.embedding import Embedder, load_embedder
from hullft_ops.ttft.errors import NonFiniteLossError
from hullft_ops.ttft.finetuner import TestTimeFinetuner
from hullft_ops.ttft.identity import model_identity
from hullft_ops.ttft.models.memory import return_freed_memory
from hullft_ops.ttft.scoring import score_text
from hullft_ops.ttft.store.base import Store
from hullft_ops.ttft.store.datastore import Datastore

_MODULES = ("hullft_ops", "torch", "transformers", "tokenizers", "faiss")
# Tokenizers with one vocabulary may merge, normalise and prefix text differently.
_SENTENCE = "Naïve  TOKENS of x_1 = 3.14;\n\tİt's 10,000 日本 🙂"
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


def load_evaluation(experiment: Experiment) -> Evaluation:
    """Load what an experiment names. A corpus's datastore is in `DATASTORES`, or is built there.

    Raises:
        InputError, OSError: something cannot be loaded, or no prompt is left.
    """
    configs = experiment.configs()
    # First what is soon refused: embedding a corpus takes long.
    progress_line("loading the model")
    model, tokenizer = experiment.load()
    progress_line("loading the embedder")
    embedder = load_embedder(experiment.embedder)
    store, prompts, notes = open_texts(experiment, embedder)
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
    """The rows of all tasks, after a pass that pays for allocations and thread pools."""
    for prompt, labels in tasks[:1]:
        config = replace(evaluation.configs[labels[0]], passes=1)
        _rows(evaluation, evaluation.finetuner(config), [config], prompt, before={})
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
        context = max(config.context for config in configs)
        finetuner = evaluation.finetuner(replace(configs[0], context=context))
        window = finetuner.window
        if window not in before:
            models = evaluation.model, evaluation.tokenizer
            score = partial(score_text, *models, max_length=window)
            before[window] = scores_of(prompt, score)
        yield from _rows(evaluation, finetuner, configs, prompt, before[window])
        del finetuner
        return_freed_memory()


def _trainings(configs: list[TTFTConfig]) -> list[list[TTFTConfig]]:
    """Groups that one training serves: they differ in passes and context alone.

    Each is by rising passes, and then by falling context.
    """
    groups = defaultdict(list)
    for config in configs:
        groups[replace(config, passes=None, context=0)].append(config)
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
    versions: dict[str, str | None] = {
        name: str(import_module(name).__version__) for name in _MODULES
    }
    versions["device"] = evaluation.model.device.type

    def row(config: TTFTConfig, **measured: Any) -> Row:
        return Row(
            run=evaluation.run,
            prompt=prompt.id,
            config=label(config),
            settings=settings_of(config),
            domain=prompt.domain,
            seed=evaluation.seed,
            support_size=len(support.indices),
            versions=versions,
            threads=torch.get_num_threads(),
            **measured,
        )

    rows: list[Row] = []
    try:
        with finetuner.adapted(support) as adaptation:
            for config in configs:
                if rows:
                    adaptation.train(config.passes)
                if config.context != context:
                    context = config.context
                    adaptation.read(context)
                after = scores_of(prompt, adaptation.score)
                seconds = adaptation.seconds
                scored = row(
                    config,
                    scores={
                        name: Score(before=before[name], after=after[name])
                        for name in before
                    },
                    seconds={stage: seconds.get(stage, 0.0) for stage in STAGES},
                    passes=adaptation.passes,
                    error=None,
                )
                rows.append(scored)
    except NonFiniteLossError as error:
        for config in configs[len(rows) :]:
            lost = row(config, scores={}, seconds={}, passes=0, error=str(error))
            rows.append(lost)
    return rows


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
