"""Measuring configurations on held-out prompts: a row for each pair of them."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import import_module
from typing import Any

import torch

from hullft_ops.evaluation.experiment import Experiment
from hullft_ops.evaluation.prompts import HeldOut, open_texts
from hullft_ops.evaluation.results import Row, Score, key_of
from hullft_ops.evaluation.scores import METRICS, metrics_of, scores_of
from hullft_ops.ttft.finetuner import TestTimeFinetuner
from hullft_ops.ttft.loss import NonFiniteLossError
from hullft_ops.ttft.question import question_of
from hullft_ops.ttft.records import run_identity
from hullft_ops.ttft.search import Neighbours, Search, embedder_for
from hullft_ops.ttft.store.datastore import Datastore
from hullft_ops.ttft.techniques import TTFTConfig
from hullft_ops.ttft.terminal import waiting
from hullft_ops.ttft.validation import InputError

_MODULES = ("hullft_ops", "torch", "transformers", "tokenizers", "faiss")
# A prompt, and the keys of the configurations to measure on it.
Task = tuple[HeldOut, list[str]]


@dataclass(frozen=True)
class Evaluation:
    """The models and texts of an experiment, loaded.

    Attributes:
        run: identity of model, tokenizer, datastore, embedder and seed.
        prompts: the prompts that the datastore does not hold.
        notes: lines that say where they come from.
        metrics: the names of the metrics to measure.
        finetuners: one for each configuration, by the key of its settings. They share all memory.
    """

    run: str
    prompts: list[HeldOut]
    notes: list[str]
    metrics: list[str]
    finetuners: dict[str, TestTimeFinetuner]

    @cached_property
    def settings(self) -> dict[str, dict[str, Any]]:
        """The settings of each configuration, by key. Reads adapters, to tell them apart."""
        return {
            key: finetuner.config.settings()
            for key, finetuner in self.finetuners.items()
        }

    @cached_property
    def unadapted(self) -> TestTimeFinetuner:
        """The model as it is. In its own dtype, so that its scores are the same for all
        configurations."""
        first = next(iter(self.finetuners.values()))
        config = TTFTConfig(
            train_on_prompt=0,
            context=0,
            ngrams=0.0,
            dtype=None,
            max_length=first.config.max_length,
        )
        return first.with_config(config)


def load_evaluation(experiment: Experiment) -> Evaluation:
    """Load what an experiment names. A corpus's datastore is in `DATASTORES`, or is built there.

    Raises:
        InputError, OSError: something cannot be loaded, or no prompt is left.
    """
    configs, metrics = experiment.configs(), metrics_of(experiment.score)
    # Fail fast: loading takes long, and embedding a corpus longer.
    if (experiment.store is None) != (experiment.prompts is None):
        raise InputError("store and prompts must be given together, or a corpus")
    opened = Datastore.open(experiment.store) if experiment.store else None
    with waiting("loading the model"):
        model, tokenizer = experiment.load()
    embedder = embedder_for(configs, opened, experiment.embedder)
    store, prompts, notes = open_texts(experiment, opened, embedder)
    trains_on_prompts = any(config.train_on_prompt for config in configs)
    if trains_on_prompts and any(prompt.continuation is None for prompt in prompts):
        raise InputError(
            "train_on_prompt: the model has then seen the prompt, so each needs a continuation to "
            "score"
        )
    first = TestTimeFinetuner(model, tokenizer, store, embedder, configs[0])
    others = [first.with_config(config) for config in configs[1:]]
    finetuners = {
        key_of(finetuner.config.settings()): finetuner for finetuner in [first, *others]
    }
    written = [name for name in metrics if METRICS[name].is_written]
    options = [experiment.seed, *written] if written else experiment.seed
    return Evaluation(
        run=run_identity(first.language_model, store, options),
        prompts=prompts,
        notes=notes,
        metrics=metrics,
        finetuners=finetuners,
    )


def missing(evaluation: Evaluation, rows: Mapping[tuple[str, str], Row]) -> list[Task]:
    """Each prompt with the configurations that have no row yet, in the order to run them."""
    keys = list(evaluation.finetuners)
    tasks: list[Task] = []
    for number, prompt in enumerate(evaluation.prompts):
        # Each prompt begins with another configuration, so that none always runs first.
        first = number % len(keys)
        rotated = keys[first:] + keys[:first]
        left = [key for key in rotated if (prompt.id, key) not in rows]
        if left:
            tasks.append((prompt, left))
    return tasks


def measure_tasks(evaluation: Evaluation, tasks: list[Task]) -> Iterator[Row]:
    """The rows of all tasks, after a pass that pays for allocations and thread pools."""
    for prompt, keys in tasks[:1]:
        finetuner = evaluation.finetuners[keys[0]]
        one_pass = finetuner.with_config(replace(finetuner.config, passes=1))
        with suppress(NonFiniteLossError), one_pass.adapted(prompt.text) as adaptation:
            scores_of(prompt, adaptation, evaluation.metrics)
    for task in tasks:
        yield from measure(evaluation, task)


def measure(evaluation: Evaluation, task: Task) -> Iterator[Row]:
    """A row for each configuration on one prompt.

    Raises:
        ValueError: the prompt cannot be scored, or a setting does not fit the datastore.
        NonFiniteLossError: the loss of the model without adaptation is not finite.
    """
    prompt, keys = task
    finetuners = [evaluation.finetuners[key] for key in keys]
    # A search serves all of its kind: each takes the beginning of the list that it needs.
    count = max(finetuner.n_neighbours for finetuner in finetuners)
    question = question_of(evaluation.unadapted.tokenizer, prompt.text)
    retrieved: dict[Search | None, Neighbours] = {}
    with evaluation.unadapted.adapted(question) as unadapted:
        before = scores_of(prompt, unadapted, evaluation.metrics)
    for key, finetuner in zip(keys, finetuners, strict=True):
        if finetuner.search not in retrieved:
            retrieved[finetuner.search] = finetuner.retrieve(question, count)
        try:
            with finetuner.adapted(retrieved[finetuner.search]) as adaptation:
                after = scores_of(prompt, adaptation, evaluation.metrics)
        except NonFiniteLossError as error:
            yield _row(evaluation, prompt, key, error=str(error))
            continue
        scores = {
            name: Score(before=before[name], after=value)
            for name, value in after.items()
        }
        yield _row(
            evaluation,
            prompt,
            key,
            scores=scores,
            seconds=adaptation.seconds,
            passes=adaptation.passes,
        )


def _row(
    evaluation: Evaluation,
    prompt: HeldOut,
    key: str,
    **measured: Any,
) -> Row:
    versions: dict[str, str | None] = {
        name: str(import_module(name).__version__) for name in _MODULES
    }
    versions["device"] = evaluation.unadapted.model.device.type
    return Row(
        run=evaluation.run,
        prompt=prompt.id,
        settings=evaluation.settings[key],
        domain=prompt.domain,
        versions=versions,
        threads=torch.get_num_threads(),
        **measured,
    )
