"""Measuring configurations on held-out prompts: a row for each pair of them."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from math import inf
from typing import Any

import torch

from hullft_ops._terminal import waiting
from hullft_ops.evaluation.experiment import Experiment, label, settings_of
from hullft_ops.evaluation.prompts import Prompt, open_texts
from hullft_ops.evaluation.results import STAGES, Row, Score
from hullft_ops.evaluation.scores import scores_of
from hullft_ops.ttft.adaptation import Adaptation
from hullft_ops.ttft.adapter import adapter_identity
from hullft_ops.ttft.config import TTFTConfig
from hullft_ops.ttft.embedding import load_embedder
from hullft_ops.ttft.errors import InputError, NonFiniteLossError
from hullft_ops.ttft.finetuner import TestTimeFinetuner
from hullft_ops.ttft.models.memory import return_freed_memory
from hullft_ops.ttft.reader import Reader, tokenizer_identity
from hullft_ops.ttft.scoring import score
from hullft_ops.ttft.store.base import Store
from hullft_ops.ttft.support import Support, neighbours_needed

_MODULES = ("hullft_ops", "torch", "transformers", "tokenizers", "faiss")
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
        adapters: the identities of their adapters, by folder.
        finetuner: of the model and the datastore, with the first of these.
    """

    run: str
    seed: int
    prompts: list[Prompt]
    notes: list[str]
    configs: dict[str, TTFTConfig]
    adapters: dict[str, str]
    finetuner: TestTimeFinetuner


def load_evaluation(experiment: Experiment) -> Evaluation:
    """Load what an experiment names. A corpus's datastore is in `DATASTORES`, or is built there.

    Raises:
        InputError, OSError: something cannot be loaded, or no prompt is left.
    """
    configs = experiment.configs()
    # First what is soon refused: embedding a corpus takes long.
    with waiting("loading the model"):
        model, tokenizer = experiment.load()
    with waiting("loading the embedder"):
        embedder = load_embedder(experiment.embedder)
    store, prompts, notes = open_texts(experiment, embedder)
    trains_on_prompts = any(config.train_on_prompt for config in configs)
    if trains_on_prompts and any(prompt.continuation is None for prompt in prompts):
        raise InputError(
            "train_on_prompt: the model has then seen the prompt, so each needs a continuation to "
            "score"
        )
    finetuner = TestTimeFinetuner(model, tokenizer, store, embedder, configs[0])
    for config in configs[1:]:
        # A configuration that does not fit the models is refused before the work.
        finetuner.with_config(config)
    return Evaluation(
        run=run_identity(finetuner.reader, store, experiment.seed),
        seed=experiment.seed,
        prompts=prompts,
        notes=notes,
        configs={label(config): config for config in configs},
        adapters={
            config.adapter: adapter_identity(config.adapter)
            for config in configs
            if config.adapter is not None
        },
        finetuner=finetuner,
    )


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
        _warm_up(evaluation.configs[labels[0]], evaluation.finetuner, prompt)
    for task in tasks:
        yield from measure(evaluation, task)


def _warm_up(config: TTFTConfig, finetuner: TestTimeFinetuner, prompt: Prompt) -> None:
    one_pass = finetuner.with_config(replace(config, passes=1))
    with suppress(NonFiniteLossError), one_pass.adapted(prompt.text) as adaptation:
        scores_of(prompt, adaptation.score)


def measure(evaluation: Evaluation, task: Task) -> Iterator[Row]:
    """A row for each configuration on one prompt.

    Raises:
        ValueError: the prompt cannot be scored, or a setting does not fit the datastore.
        NonFiniteLossError: the loss of the model without adaptation is not finite.
    """
    prompt, labels = task
    configs = [evaluation.configs[config] for config in labels]
    # One search serves all trainings: of a longer list of neighbours each takes the beginning.
    neighbours = evaluation.finetuner.selector.neighbours(
        prompt.text, max(map(neighbours_needed, configs))
    )
    # By the length of the scored windows, which is the same unless the model states none.
    before: dict[int, dict[str, float]] = {}
    for training in _trainings(configs):
        # What is read and what is mixed in can be taken away again.
        context = max(config.context for config in training)
        ngrams = max(config.ngrams for config in training)
        # It holds three times the trained parameters once it has adapted, so one at a time.
        finetuner = evaluation.finetuner.with_config(
            replace(training[0], context=context, ngrams=ngrams)
        )
        window = finetuner.reader.window
        if window not in before:
            # In the model's own dtype, so that it is the same for all.
            reader = Reader(finetuner.model, finetuner.tokenizer, window)
            before[window] = scores_of(prompt, partial(score, reader))
        support = finetuner.selector.select(neighbours)
        rows = Rows(evaluation, prompt, before[window], support)
        yield from rows.of(finetuner, training)
        del finetuner
        return_freed_memory()


def _trainings(configs: list[TTFTConfig]) -> list[list[TTFTConfig]]:
    """Groups that one training serves: they differ in passes, context and n-grams alone.

    Each is by rising passes, and then by falling context.
    """
    groups = defaultdict(list)
    for config in configs:
        groups[replace(config, passes=None, context=0, ngrams=0.0)].append(config)
    for group in groups.values():
        group.sort(key=lambda config: (config.passes or inf, -config.context))
    return list(groups.values())


@dataclass(frozen=True)
class Rows:
    """Makes the rows of one training on a prompt, whose scores without adaptation are known."""

    evaluation: Evaluation
    prompt: Prompt
    before: dict[str, float]
    support: Support

    def of(self, finetuner: TestTimeFinetuner, configs: list[TTFTConfig]) -> list[Row]:
        """Train once, and score after each configuration's passes behind its passages."""
        context, ngrams = finetuner.config.context, finetuner.config.ngrams
        rows: list[Row] = []
        try:
            with finetuner.adapted(self.support) as adaptation:
                for config in configs:
                    if rows:
                        adaptation.train(config.passes)
                    if config.context != context:
                        context = config.context
                        adaptation.read(context)
                    if config.ngrams != ngrams:
                        ngrams = config.ngrams
                        adaptation.mix(ngrams)
                    rows.append(self._scored(config, adaptation))
        except NonFiniteLossError as error:
            for config in configs[len(rows) :]:
                lost = {"scores": {}, "seconds": {}, "passes": 0, "error": str(error)}
                rows.append(self._row(config, **lost))
        return rows

    def _scored(self, config: TTFTConfig, adaptation: Adaptation) -> Row:
        is_seen = config.train_on_prompt > 0
        after = scores_of(self.prompt, adaptation.score, is_seen=is_seen)
        scores = {
            name: Score(before=self.before[name], after=value)
            for name, value in after.items()
        }
        seconds = {stage: adaptation.seconds.get(stage, 0.0) for stage in STAGES}
        return self._row(
            config,
            scores=scores,
            seconds=seconds,
            passes=adaptation.passes,
            error=None,
        )

    def _row(self, config: TTFTConfig, **measured: Any) -> Row:
        versions: dict[str, str | None] = {
            name: str(import_module(name).__version__) for name in _MODULES
        }
        versions["device"] = self.evaluation.finetuner.model.device.type
        return Row(
            run=self.evaluation.run,
            prompt=self.prompt.id,
            config=label(config),
            settings=settings_of(config),
            adapter=self.evaluation.adapters.get(config.adapter or ""),
            domain=self.prompt.domain,
            seed=self.evaluation.seed,
            support_size=len(self.support.indices),
            versions=versions,
            threads=torch.get_num_threads(),
            **measured,
        )


def run_identity(reader: Reader, store: Store | None, options: Any) -> str:
    """Differs if any weight, the tokenizer, a text, an embedding or an option does."""
    about = [
        reader.model_identity,
        tokenizer_identity(reader.tokenizer),
        store.identity if store is not None else None,
        store.embedder if store is not None else None,
        options,
    ]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]
