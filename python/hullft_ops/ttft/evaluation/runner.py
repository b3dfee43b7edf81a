"""Running configurations on held-out prompts, with a row of results for each pair."""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, partial
from itertools import groupby
from operator import itemgetter
from time import perf_counter
from typing import TypeVar

import numpy as np
import torch
from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hullft_ops.collect_env import versions_of
from hullft_ops.ttft._progress import progress_bar
from hullft_ops.ttft.errors import NonFiniteLossError
from hullft_ops.ttft.evaluation.config import (
    ConfigError,
    Settings,
    config_id,
    finetuner_options,
)
from hullft_ops.ttft.evaluation.corpus import Prompt, normalised
from hullft_ops.ttft.evaluation.results import MERGE, ResultsFile, Row, fingerprint
from hullft_ops.ttft.evaluation.sift_reuse import PickedSift, in_runs
from hullft_ops.ttft.experts.folder import Experts
from hullft_ops.ttft.finetuner import TestTimeFinetuner
from hullft_ops.ttft.model.context import scored_context
from hullft_ops.ttft.model.memory import out_of_memory_explained
from hullft_ops.ttft.model.scoring import BitsPerByte, score_text
from hullft_ops.ttft.report import AdaptationReport
from hullft_ops.ttft.retrieval.methods import Sift
from hullft_ops.ttft.retrieval.support import Support
from hullft_ops.ttft.store.datastore import Datastore
from hullft_ops.ttft.store.embedding import Embedder

T = TypeVar("T")
# The adaptation's report, bits per byte, and what failed.
_Outcome = tuple[AdaptationReport | None, float | None, str | None]

EXCERPT_CHARS = 200
_SCORING = "out of memory while scoring a prompt: leave out the longest or give a smaller --model"
_PACKAGES = ("hullft_ops", "torch", "transformers", "tokenizers", "faiss-cpu")


class Evaluator:
    """Measures configurations of test-time finetuning, one prompt at a time.

    The configurations of a prompt share its bits per byte without adaptation, its embedding and its
    neighbours, which are computed once. The finetuners share the copy of the weights and the
    optimizer's state.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        store: where the neighbours come from.
        embedder: the embedder that built the store.
        seed: drives everything that is random.
        experts: experts for settings with "n_experts".
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
        self._model = model
        self._tokenizer = tokenizer
        self._embedder = OneEmbedding(embedder)
        self._datastore = store
        self._store = OneSearch(store)
        self._seed = seed
        self._experts = experts
        self._finetuners: dict[str, TestTimeFinetuner] = {}
        self._sifts: dict[str, PickedSift] = {}
        self._before: dict[tuple[str, int | None], tuple[float, int]] = {}
        self._versions = versions_of(_PACKAGES)
        self._versions["device"] = model.device.type

    @cached_property
    def run(self) -> str:
        """The `fingerprint` of its rows; not every use of an evaluator makes some."""
        return fingerprint(self._model, self._tokenizer, self._datastore, self._seed)

    def prepare(self, settings: Sequence[Settings]) -> None:
        """Make the finetuners, so that a wrong setting shows before anything runs.

        Raises:
            ConfigError: `TestTimeFinetuner` refuses a setting; the message comes from it.
        """
        for setting in settings:
            self._finetuner(setting)

    def in_store(self, prompts: Sequence[Prompt]) -> set[str]:
        """Ids of the prompts whose nearest text in the datastore is the prompt, up to layout."""
        if not prompts:
            return set()
        _, ids = self._store.search(
            torch.from_numpy(self._embedder.encode([p.text for p in prompts])), 1
        )
        return {
            prompt.id
            for prompt, nearest in zip(prompts, ids[:, 0].tolist(), strict=True)
            if normalised(self._store.texts[nearest]) == normalised(prompt.text)
        }

    def warm_up(self, prompt: Prompt, settings: Settings) -> None:
        """Pay for allocations and thread pools now, so that no configuration has to."""
        try:
            self._adapted(prompt, [settings])
        except ValueError as error:
            raise ConfigError(f"prompt {prompt.text[:40]!r}: {error}") from error
        # The prompt's rows must have the times of a warm embedding and search.
        self._embedder.forget()
        self._store.forget()

    def remember(self, rows: Iterable[Row]) -> None:
        """Take the prompts' bits per byte without adaptation from earlier rows."""
        for row in rows:
            key = row.prompt, self._scored_context(row.settings)
            self._before[key] = row.bits_per_byte_before, row.bytes_scored

    def measure(self, prompt: Prompt, settings: Settings) -> Row:
        """Adapt to the prompt, score it, restore the model.

        Raises:
            ConfigError: the prompt cannot be scored, or the model cannot adapt to it.
        """
        return self.measure_with_report(prompt, settings)[0]

    def measure_with_report(
        self, prompt: Prompt, settings: Settings
    ) -> tuple[Row, AdaptationReport | None]:
        """As `measure`, with the adaptation's report, or None if a loss in it was not finite.

        The report has the same times of embedding and search as the row.
        """
        [result] = self._measured(prompt, [settings])
        return result

    def measure_all(self, prompt: Prompt, settings: Sequence[Settings]) -> Iterator[Row]:
        """A row for each of the settings.

        Those that differ in ``context`` alone share one adaptation. Each row has its whole time.
        """
        together: dict[str, list[Settings]] = {}
        for setting in settings:
            together.setdefault(config_id(setting | {"context": 0}), []).append(setting)
        for group in together.values():
            yield from (row for row, _ in self._measured(prompt, group))

    def continuations(self, text: str, settings: Settings, new_tokens: int) -> tuple[str, str]:
        """What the model writes after ``text`` as it is, and adapted to it.

        New tokens take at most half of the context.
        """
        finetuner = self._finetuner(settings)
        if length := self._scored_context(settings):
            new_tokens = min(new_tokens, length // 2)
        written = partial(finetuner.continuation, text, max_new_tokens=new_tokens, do_sample=False)
        before = written()
        with finetuner.adapted(text):
            return before, written()

    def _measured(
        self, prompt: Prompt, group: Sequence[Settings]
    ) -> Iterator[tuple[Row, AdaptationReport | None]]:
        """Rows and reports of settings that differ in ``context`` alone."""
        start = perf_counter()
        torch.manual_seed(self._seed)
        try:
            # A prompt's settings have one length of scored windows, and so one score before.
            before, size = self._score_before(prompt, group[0])
            for settings, (report, after, failure) in zip(
                group, self._adapted(prompt, group), strict=True
            ):
                seconds = self._seconds(report) if report else {}
                if report:
                    report.seconds_embed = seconds["embed"]
                    report.seconds_search = seconds["search"]
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
                    seconds=seconds,
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
        except ValueError as error:
            raise ConfigError(f"prompt {prompt.text[:40]!r}: {error}") from error

    def _adapted(self, prompt: Prompt, group: Sequence[Settings]) -> list[_Outcome]:
        """One adaptation, scored with the texts in the context that each of the settings asks for.

        If it fails, all of them do.
        """
        finetuner = self._finetuner(group[0])
        report = None
        try:
            with (
                finetuner.adapted(self._support(prompt, group[0])) as report,
                out_of_memory_explained(_SCORING),
            ):
                outcomes: list[_Outcome] = [(report, finetuner.score_text(prompt.text).value, None)]
                for settings in group[1:]:
                    context = self._finetuner(settings).select(prompt.text)
                    other = finetuner.read_context(report, context)
                    outcomes.append((other, finetuner.score_text(prompt.text).value, None))
                return outcomes
        except NonFiniteLossError as error:
            return [(report, None, str(error))] * len(group)

    def _score_before(self, prompt: Prompt, settings: Settings) -> tuple[float, int]:
        key = prompt.id, self._scored_context(settings)
        if key not in self._before:
            score = self._score(prompt, settings)
            self._before[key] = score.value, score.bytes
        return self._before[key]

    def _score(self, prompt: Prompt, settings: Settings) -> BitsPerByte:
        length = self._scored_context(settings)
        with out_of_memory_explained(_SCORING):
            return score_text(self._model, self._tokenizer, prompt.text, max_length=length)

    def _scored_context(self, settings: Settings) -> int | None:
        given = settings.get("max_length")
        return scored_context("score_text", self._model, self._tokenizer, given)

    def _seconds(self, report: AdaptationReport) -> dict[str, float]:
        """Seconds by stage. Another configuration's row may have paid for embedding and search."""
        return {
            "embed": self._embedder.seconds,
            "search": self._store.seconds,
            "select": report.seconds_select,
            "finetune": report.seconds_finetune + report.seconds_prefill,
        } | ({MERGE: report.seconds_merge} if report.expert_indices else {})

    def _support(self, prompt: Prompt, settings: Settings) -> Support:
        support = self._finetuner(settings).select(prompt.text)
        if settings.get("reuse") is None:
            return support
        return in_runs(support, self._sifts[config_id(settings)].picks, settings["reuse"])

    def _finetuner(self, settings: Settings) -> TestTimeFinetuner:
        key = config_id(settings)
        if key not in self._finetuners:
            try:
                options = finetuner_options(settings, self._seed, self._experts)
                if isinstance(options["method"], Sift):
                    self._sifts[key] = options["method"] = PickedSift(options["method"].noise)
                made = TestTimeFinetuner(
                    self._model, self._tokenizer, self._store, self._embedder, **options
                )
            except (TypeError, ValueError) as error:
                raise ConfigError(f"{key}: {error}") from error
            for other in self._finetuners.values():
                made.share_memory_with(other)
                break
            self._finetuners[key] = made
        return self._finetuners[key]


def evaluate(
    evaluator: Evaluator,
    prompts: Sequence[Prompt],
    settings: Sequence[Settings],
    results: ResultsFile,
    log: Console,
) -> None:
    """Add the rows that ``results`` lacks, prompt by prompt.

    Each prompt begins with another configuration, so that none always runs first.

    Raises:
        ConfigError: `TestTimeFinetuner` refuses a setting, or a prompt cannot be scored.
    """
    evaluator.prepare(settings)
    evaluator.remember(results.rows.values())
    missing = missing_pairs(prompts, settings, results)
    if not missing:
        return
    total = len(prompts) * len(settings)
    with progress_bar(log) as bar:
        task = bar.add_task("evaluating", total=total, completed=total - len(missing))
        evaluator.warm_up(*missing[0])
        for prompt, pairs in groupby(missing, key=itemgetter(0)):
            for row in evaluator.measure_all(prompt, [setting for _, setting in pairs]):
                results.append(row)
                bar.advance(task)


def missing_pairs(
    prompts: Sequence[Prompt], settings: Sequence[Settings], results: ResultsFile
) -> list[tuple[Prompt, Settings]]:
    """The pairs that ``results`` has no row for, prompt by prompt, in the order to run them."""
    return [
        (prompt, setting)
        for number, prompt in enumerate(prompts)
        for setting in rotated(settings, number)
        if (prompt.id, config_id(setting)) not in results.rows
    ]


def rotated(items: Sequence[T], by: int) -> list[T]:
    """The items, rotated to begin with number ``by``."""
    start = by % len(items)
    return [*items[start:], *items[:start]]


class OneEmbedding:
    """An embedder that remembers its last text.

    ``seconds`` is the time that its last vectors took to compute.
    """

    def __init__(self, embedder: Embedder) -> None:
        self.name = embedder.name
        self.dim = embedder.dim
        self.seconds = 0.0
        self._embedder = embedder
        self._last: tuple[list[str], np.ndarray] | None = None

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """As the embedder's own method."""
        if self._last is None or self._last[0] != list(texts):
            start = perf_counter()
            vectors = self._embedder.encode(texts)
            self.seconds = perf_counter() - start
            self._last = list(texts), vectors
        return self._last[1]

    def forget(self) -> None:
        """Compute the next text again, whatever it is."""
        self._last = None


class OneSearch:
    """A `Store` that remembers the neighbours of another store's last query.

    ``seconds`` is the time that its last neighbours took to find.
    """

    def __init__(self, store: Datastore) -> None:
        self.texts = store.texts
        self.manifest = store.manifest
        self.embedder = store.embedder
        self.dim = store.dim
        self._store = store
        self.seconds = 0.0
        self._query: torch.Tensor | None = None
        self._found: dict[int, tuple[float, tuple[torch.Tensor, torch.Tensor]]] = {}

    @property
    def embeddings(self) -> torch.Tensor:
        # A database's embeddings grow with every search.
        return self._store.embeddings

    def __len__(self) -> int:
        return len(self._store)

    def search(
        self, queries: np.ndarray | torch.Tensor, k: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As the other store's own method."""
        query = torch.as_tensor(queries, device="cpu")
        if self._query is None or not torch.equal(query, self._query):
            self._query = query.clone()
            self._found.clear()
        if k not in self._found:
            start = perf_counter()
            found = self._store.search(query, k)
            self._found[k] = perf_counter() - start, found
        self.seconds, found = self._found[k]
        return found

    def forget(self) -> None:
        """Search for the next query again, whatever it is."""
        self._query = None
