"""Running configurations on held-out prompts, with a row of results for each pair."""

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from itertools import groupby
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hullft_ops import Selection, sift_select_indexed
from hullft_ops._terminal import echo
from hullft_ops.collect_env import versions_of
from hullft_ops.ttft._progress import progress_bar
from hullft_ops.ttft.errors import NonFiniteLossError
from hullft_ops.ttft.evaluation.config import (
    Config,
    Settings,
    config_id,
    finetuner_options,
    open_experts,
    refusing,
)
from hullft_ops.ttft.evaluation.corpus import Prompt, open_texts
from hullft_ops.ttft.evaluation.results import (
    MERGE,
    STAGES,
    ResultsFile,
    Row,
    fingerprint,
)
from hullft_ops.ttft.experts.folder import Experts
from hullft_ops.ttft.finetuner import TestTimeFinetuner
from hullft_ops.ttft.model.context import known_context
from hullft_ops.ttft.model.loading import checked_device, load_model
from hullft_ops.ttft.model.memory import out_of_memory_explained
from hullft_ops.ttft.model.scoring import score_text
from hullft_ops.ttft.report import AdaptationReport
from hullft_ops.ttft.retrieval.methods import Sift
from hullft_ops.ttft.retrieval.support import Support
from hullft_ops.ttft.store.base import Found, Queries
from hullft_ops.ttft.store.datastore import Datastore
from hullft_ops.ttft.store.embedding import Embedder, open_embedder

T = TypeVar("T")
Reuse = Literal["global", "consecutive"]
# The adaptation's report, bits per byte, and what failed.
_Outcome = tuple[AdaptationReport | None, float | None, str | None]
# A prompt, and the settings to measure on it.
Task = tuple[Prompt, list[Settings]]

EXCERPT_CHARS = 200
_SCORING = "out of memory while scoring a prompt: leave out the longest or give a smaller --model"
_PACKAGES = ("hullft_ops", "torch", "transformers", "tokenizers", "faiss-cpu")


class Evaluator:
    """Measures configurations of test-time finetuning, one prompt at a time.

    The configurations of a prompt share its bits per byte without adaptation, its embedding and its
    neighbours. Their finetuners share memory. ``seed`` drives everything that is random,
    ``experts`` serve settings with "n_experts", the rest is as in `TestTimeFinetuner`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        store: Datastore,
        embedder: Embedder,
        *,
        seed: int = 0,
        experts: Experts | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.store = store
        self.embedder = embedder
        self._embedding = OneEmbedding(embedder)
        self._search = OneSearch(store)
        self._seed = seed
        self._experts = experts
        self._finetuners: dict[str, TestTimeFinetuner] = {}
        # What SIFT picked for the latest prompt.
        self._picks: list[int] = []
        self._warm = False
        self._before: dict[tuple[str, int | None], tuple[float, int]] = {}
        self._is_limited = known_context("score_text", model, tokenizer) is not None
        self._versions = versions_of(_PACKAGES) | {"device": model.device.type}

    @classmethod
    def of(
        cls,
        config: Config,
        store: Datastore,
        embedder: Embedder,
        device: str | torch.device,
    ) -> "Evaluator":
        """One with the model, on ``device``, and the experts that ``config`` names."""
        missing, say = config.allow_missing_weights, partial(echo, err=True)
        loaded = load_model(
            config.model, device, allow_missing_weights=missing, say=say
        )
        experts = open_experts(config.experts)
        return cls(*loaded, store, embedder, seed=config.seed, experts=experts)

    @cached_property
    def run(self) -> str:
        """The `fingerprint` of its rows; not every use of an evaluator makes some."""
        return fingerprint(self.model, self.tokenizer, self.store, self._seed)

    def prepare(self, settings: Sequence[Settings], known: Iterable[Row] = ()) -> None:
        """Make the finetuners; a `ConfigError` says why `TestTimeFinetuner` refuses a setting.

        ``known`` are earlier rows, which have prompts' bits per byte without adaptation.
        """
        for setting in settings:
            self._finetuner(setting)
        for row in known:
            key = row.prompt, self._scored_context(row.settings)
            self._before[key] = row.bits_per_byte_before, row.bytes_scored

    def warm_up(
        self, prompt: Prompt, settings: Settings
    ) -> tuple[Row, AdaptationReport | None]:
        """Pay for allocations and thread pools now, so that no configuration has to."""
        [measured] = self.measure(prompt, [settings])
        self._warm = True
        # The prompt's rows must have the times of a warm embedding and search.
        self._embedding.forget()
        self._search.forget()
        return measured

    def measure_all(
        self, prompt: Prompt, settings: Sequence[Settings]
    ) -> Iterator[Row]:
        """A row for each setting; those that differ in ``context`` alone share an adaptation."""
        if not self._warm:
            self.warm_up(prompt, settings[0])
        together: dict[str, list[Settings]] = {}
        for setting in settings:
            together.setdefault(config_id(setting | {"context": 0}), []).append(setting)
        for group in together.values():
            yield from (row for row, _ in self.measure(prompt, group))

    def continuations(
        self, text: str, settings: Settings, new_tokens: int
    ) -> tuple[str, str]:
        """What the model writes after ``text`` as it is, and adapted to it."""
        finetuner = self._finetuner(settings)
        if length := self._scored_context(settings):
            # Leave room for the text.
            new_tokens = min(new_tokens, length // 2)
        options: dict[str, Any] = {"max_new_tokens": new_tokens, "do_sample": False}
        return finetuner.continuation(text, **options), finetuner.generate(
            text, **options
        )

    def measure(
        self, prompt: Prompt, group: Sequence[Settings]
    ) -> Iterator[tuple[Row, AdaptationReport | None]]:
        """Rows and reports of settings that differ in ``context`` alone: one adaptation for all.

        There is no report if a loss was not finite. A `ConfigError` says why the model cannot score
        the prompt or adapt to it.
        """
        start = perf_counter()
        torch.manual_seed(self._seed)
        with refusing(f"prompt {prompt.text[:40]!r}"):
            # A prompt's settings have one length of scored windows, and so one score before.
            before, size = self._score_before(prompt, group[0])
            outcomes = self._adapted(prompt, group)
        for settings, (report, after, failure) in zip(group, outcomes, strict=True):
            row = Row(
                run=self.run,
                prompt=prompt.id,
                config=config_id(settings),
                settings=settings,
                domain=prompt.domain,
                excerpt=prompt.text[:EXCERPT_CHARS],
                seed=self._seed,
                bits_per_byte_before=before,
                bits_per_byte_after=after,
                bytes_scored=size,
                seconds=self._seconds(report) if report and failure is None else {},
                seconds_row=perf_counter() - start,
                passes=report.forward_backward_passes if report else 0,
                steps=report.optimizer_steps if report else 0,
                support_size=len(set(report.indices)) if report else 0,
                residual=report.residual if report else None,
                error=failure,
                versions=self._versions,
                threads=torch.get_num_threads(),
            )
            yield row, report
            start = perf_counter()

    def _adapted(self, prompt: Prompt, group: Sequence[Settings]) -> list[_Outcome]:
        """One adaptation, scored with the texts in the context of each of the settings."""
        finetuner, report = self._finetuner(group[0]), None
        support = finetuner.select(prompt.text)
        if (reuse := group[0].get("reuse")) is not None:
            support = in_runs(support, self._picks, reuse)
        outcomes: list[_Outcome] = []
        try:
            with (
                finetuner.adapted(support) as report,
                out_of_memory_explained(_SCORING),
            ):
                for settings in group:
                    if outcomes:
                        context = self._finetuner(settings).select(prompt.text)
                        report = finetuner.read_context(report, context)
                    outcomes.append(
                        (report, finetuner.score_text(prompt.text).value, None)
                    )
                return outcomes
        except NonFiniteLossError as error:
            return [(report, None, str(error))] * len(group)

    def _score_before(self, prompt: Prompt, settings: Settings) -> tuple[float, int]:
        key = prompt.id, self._scored_context(settings)
        if key not in self._before:
            with out_of_memory_explained(_SCORING):
                score = score_text(
                    self.model, self.tokenizer, prompt.text, max_length=key[1]
                )
            self._before[key] = score.value, score.bytes
        return self._before[key]

    def _scored_context(self, settings: Settings) -> int | None:
        # Training's limit counts only if nothing else limits what the model reads.
        return None if self._is_limited else settings.get("max_length")

    def _seconds(self, report: AdaptationReport) -> dict[str, float]:
        """Seconds by stage. Another configuration's row may have paid for embedding and search."""
        report.seconds_embed = self._embedding.seconds
        report.seconds_search = self._search.seconds
        seconds = {stage: getattr(report, f"seconds_{stage}") for stage in STAGES}
        seconds["finetune"] += report.seconds_prefill
        return seconds | (
            {MERGE: report.seconds_merge} if report.expert_indices else {}
        )

    def _finetuner(self, settings: Settings) -> TestTimeFinetuner:
        key = config_id(settings)
        if key in self._finetuners:
            return self._finetuners[key]
        with refusing(key, TypeError):
            options = finetuner_options(settings, self._seed, self._experts)
            if isinstance(options["method"], Sift):
                options["method"] = PickedSift(options["method"].noise, self._picks)
            made = TestTimeFinetuner(
                self.model, self.tokenizer, self._search, self._embedding, **options
            )
        if self._finetuners:
            made.share_memory_with(next(iter(self._finetuners.values())))
        self._finetuners[key] = made
        return made


@dataclass(frozen=True)
class Inputs:
    """What a configuration names, opened, and the prompts that its datastore does not hold."""

    config: Config
    store_path: Path
    evaluator: Evaluator
    prompts: list[Prompt]


def open_inputs(config: Config, *, device: str = "cpu") -> Inputs:
    """Load what ``config`` names, with the model on ``device``. Logs the prompts it leaves out."""
    place = checked_device(device)
    embedder = open_embedder(config.embedder)
    path, store, prompts = open_texts(config, embedder)
    evaluator = Evaluator.of(config, store, embedder, place)
    counts = sorted(Counter(prompt.domain for prompt in prompts).items())
    domains = ", ".join(f"{name}: {count}" for name, count in counts)
    echo(
        f"{len(prompts)} prompts ({domains}), datastore of {len(store)} texts", err=True
    )
    return Inputs(config, path, evaluator, prompts)


def evaluate(
    inputs: Inputs,
    results: ResultsFile,
    measure: Callable[[list[Task]], Generator[Row]] | None = None,
) -> None:
    """Add the rows that ``results`` lacks, prompt by prompt. Raises what `Evaluator` raises.

    ``measure`` makes the rows elsewhere, for example `hullft_ops.ttft.scale.evaluation.ray_rows`.
    """
    evaluator, settings = inputs.evaluator, inputs.config.configurations
    evaluator.prepare(settings, results.rows.values())
    tasks = missing_tasks(inputs.prompts, settings, results)
    total, missing = (
        len(inputs.prompts) * len(settings),
        sum(len(some) for _, some in tasks),
    )
    here = (row for task in tasks for row in evaluator.measure_all(*task))
    with (
        closing(here if measure is None else measure(tasks)) as rows,
        progress_bar() as bar,
    ):
        shown = bar.add_task("evaluating", total=total, completed=total - missing)
        for row in rows:
            results.append(row)
            bar.advance(shown)


def missing_tasks(
    prompts: Sequence[Prompt], settings: Sequence[Settings], results: ResultsFile
) -> list[Task]:
    """Each prompt with the settings that ``results`` has no row for, in the order to run them."""
    # Each prompt begins with another configuration, so that none always runs first.
    tasks = [
        (
            prompt,
            [
                s
                for s in rotated(settings, i)
                if (prompt.id, config_id(s)) not in results.rows
            ],
        )
        for i, prompt in enumerate(prompts)
    ]
    return [task for task in tasks if task[1]]


def rotated(items: Sequence[T], by: int) -> list[T]:
    start = by % len(items)
    return [*items[start:], *items[:start]]


def _timed(function: Callable[..., T], *arguments: Any) -> tuple[float, T]:
    start = perf_counter()
    found = function(*arguments)
    return perf_counter() - start, found


class OneEmbedding:
    """An `Embedder` that embeds a text once. ``seconds`` is the time of the latest one."""

    def __init__(self, embedder: Embedder) -> None:
        self.name, self.dim, self.seconds = embedder.name, embedder.dim, 0.0
        self._once = cache(lambda texts: _timed(embedder.encode, [*texts]))
        self.forget = self._once.cache_clear

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        self.seconds, vectors = self._once(tuple(texts))
        return vectors


class OneSearch:
    """A `Store` that searches another one once for each query. ``seconds`` is as above."""

    def __init__(self, store: Datastore) -> None:
        self.texts = store.texts
        self.manifest = store.manifest
        self.embeddings = store.embeddings
        self.embedder = store.embedder
        self.dim = store.dim
        self.seconds = 0.0
        self._count = len(store)

        def search(query: bytes, k: int) -> tuple[float, Found]:
            return _timed(
                store.search, np.frombuffer(query, np.float32).reshape(-1, store.dim), k
            )

        self._once = cache(search)
        self.forget = self._once.cache_clear

    def __len__(self) -> int:
        return self._count

    def search(self, queries: Queries, k: int) -> Found:
        self.seconds, found = self._once(np.asarray(queries).tobytes(), k)
        return found


def reuse_runs(picks: Iterable[int], reuse: Reuse) -> list[tuple[int, int]]:
    """Turn ordered picks, one for each optimizer step, into (example, repeats).

    "consecutive" merges equal picks that follow one another and keeps the order. "global" merges
    all picks of an example, at the place of its first pick. Khamis and Maalouf, arXiv:2605.30337,
    compare the two.
    """
    if reuse == "consecutive":
        return [(example, sum(1 for _ in equal)) for example, equal in groupby(picks)]
    if reuse == "global":
        return list(Counter(picks).items())
    raise ValueError(
        f"reuse_runs: reuse must be 'global' or 'consecutive', got {reuse!r}"
    )


@dataclass(frozen=True)
class PickedSift(Sift):
    """SIFT that writes its picks, as positions in the store, into a list."""

    picks: list[int] = field(default_factory=list)

    def __call__(
        self, embeddings: Tensor, candidates: Tensor, queries: Tensor, n_select: int
    ) -> Selection:
        found = sift_select_indexed(
            embeddings, candidates, queries, n_select, noise=self.noise
        )
        self.picks[:] = candidates[0][found.picks[0]].tolist()
        return found.selection


def in_runs(support: Support, picks: list[int], reuse: Reuse) -> Support:
    """The support with its steps in the order of ``picks``, and one entry for each run."""
    indices, counts = zip(*reuse_runs(picks, reuse), strict=True)
    tokens = dict(zip(support.indices, support.input_ids, strict=True))
    return replace(
        support,
        indices=list(indices),
        counts=list(counts),
        weights=[count / len(picks) for count in counts],
        input_ids=[tokens[index] for index in indices],
    )
