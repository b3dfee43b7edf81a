"""Adapting a language model to a prompt for the length of a with block."""

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import replace
from itertools import chain, islice
from time import perf_counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hullft_ops._checks import check_integer
from hullft_ops.ttft.adaptation import OUT_OF_MEMORY, Adaptation
from hullft_ops.ttft.embedding import Embedder
from hullft_ops.ttft.language_model import LanguageModel
from hullft_ops.ttft.models.checks import model_window, text_window
from hullft_ops.ttft.models.memory import (
    out_of_memory_explained,
    return_freed_memory,
)
from hullft_ops.ttft.question import Prompt, Question, question_of
from hullft_ops.ttft.restore import at_exit, block, exclusive, restored
from hullft_ops.ttft.search import Neighbours, Search, kind_of, retrieve
from hullft_ops.ttft.store.base import Store, check_embedder
from hullft_ops.ttft.techniques import TTFTConfig
from hullft_ops.ttft.techniques.passage_steps import PassageSteps, Support
from hullft_ops.ttft.techniques.technique import Prepared, prefix_of
from hullft_ops.ttft.terminal import listed
from hullft_ops.ttft.training import Deadline, Trainable, Training
from hullft_ops.ttft.write import continue_questions

# Smaller models grow by little, and memory that returns page by page takes a tenth of their time.
_LARGE = 2**30


class TestTimeFinetuner:
    """Finetunes a causal language model on a prompt's neighbours, and undoes it.

    The method is from Khamis and Maalouf, *Efficient Test-Time Finetuning of LLMs via Convex
    Reconstruction and Gradient Caching*, arXiv:2605.30337.

    It trains the matrices of the layers that have ``requires_grad``, but not embeddings, head,
    norms and biases; of a PEFT model, the adapters. Training runs in eval mode, without dropout or
    gradient checkpointing, and with a fresh state of Adam. The CPU repeats an adaptation exactly;
    torch's attention on CUDA may not.

    Memory: at most five times the trained parameters (the parameters, gradients, Adam's two moments
    and the copy to restore), the frozen parameters once, and the activations of one passage. On a
    CPU it is four times and some gradients. What will not fit into the CPU's memory is refused
    beforehand. Moments and copy stay for the next prompt.

    Args:
        model: any ``AutoModelForCausalLM``, or a PEFT model around one. If you move or cast it, or
            change its frozen weights or what it trains, make a new finetuner.
        tokenizer: the model's tokenizer.
        store: the passages to retrieve; None if no technique looks at neighbours.
        embedder: the embedder that the store was made with; None likewise, or to search by words.
        config: the options; None for the defaults.
        options: fields of `TTFTConfig`, which override ``config``.

    Raises:
        TypeError, ValueError: an option has the wrong type or is out of range, the embedder does
            not belong to the store, or the model cannot be trained, or not with this tokenizer.
    """

    # pytest takes every class whose name begins with "Test" for a test.
    __test__ = False

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        store: Store | None = None,
        embedder: Embedder | None = None,
        config: TTFTConfig | None = None,
        **options: Any,
    ) -> None:
        if store is not None and embedder is not None:
            check_embedder(embedder, store)
        self.model = model
        self.tokenizer = tokenizer
        self.store = store
        self.embedder = embedder
        self._searches: dict[type[Search], Search] = {}
        self._trainable = Trainable(model)
        config = replace(config or TTFTConfig(), **options)
        self.language_model = LanguageModel(model, tokenizer, config.max_length)
        self._set(config)

    def with_config(self, config: TTFTConfig) -> "TestTimeFinetuner":
        """A finetuner with other options. It shares the model, its checks, and all memory."""
        other = copy(self)
        other._set(config)
        return other

    def with_store(self, store: Store) -> "TestTimeFinetuner":
        """A finetuner that searches another store of the same embedder. It shares the model, its
        checks, and all memory."""
        other = copy(self)
        other.store, other._searches = store, {}
        if self.search is not None:
            kind = type(self.search)
            other.search = other._searches[kind] = kind(store, self.embedder)
        return other

    def _set(self, config: TTFTConfig) -> None:
        # What fits at once; max_length cuts passages alone.
        cut = text_window(self.model, self.tokenizer, config.max_length)
        window = model_window(self.model, self.tokenizer) or cut
        self.language_model = self.language_model.using(window, config.dtype)
        self.config = config
        self.techniques = config.active()
        self.n_neighbours = max(
            (each.n_neighbours for each in self.techniques), default=0
        )
        kind = kind_of(config.search, has_embeddings=self.embedder is not None)
        lacks = self.store is None or (kind.embeds and self.embedder is None)
        if self.n_neighbours and lacks:
            names = [type(t).__name__ for t in self.techniques if t.n_neighbours]
            raise ValueError(
                f"TestTimeFinetuner: store and embedder must be given for {listed(names)}; for "
                "search lexical the store alone; for none context=0, ngrams=0, n_select=0"
            )
        self.search: Search | None = None
        if self.store is not None and not lacks:
            search = self._searches.get(kind) or kind(self.store, self.embedder)
            self.search = self._searches[kind] = search
        for technique in self.techniques:
            technique.load(self.language_model)

    def retrieve(
        self, prompt: Prompt | Question, count: int | None = None
    ) -> Neighbours:
        """The passages nearest to a prompt: ``count``, or None for what the techniques look at.

        Raises:
            TypeError, ValueError: as `question_of`; or there is no text to search for.
        """
        count = self.n_neighbours if count is None else count
        question = question_of(self.tokenizer, prompt)
        return retrieve(question, count, self.search)

    def select(self, prompt: Prompt | Question) -> Support:
        """The passages that `adapted` would train on. Raises as `retrieve`."""
        steps = [each for each in self.techniques if isinstance(each, PassageSteps)]
        if not steps:
            raise ValueError("select: n_select must be at least 1, got 0")
        return steps[0].select(self.retrieve(prompt), self.language_model)

    @block
    def adapted(
        self,
        prompt: Prompt | Question | Neighbours,
        *,
        suffix: str = "",
        chat: bool = False,
        seconds: float | None = None,
    ) -> Iterator[Adaptation]:
        """Adapt the model to ``prompt`` for the length of a with block, and restore it afterwards.

        On exit, even after an exception or Ctrl-C, the trained parameters, buffers, gradients,
        ``requires_grad`` flags and training modes have the same bits as before, in the same
        storage, and this thread the same grad mode and autocast. Other threads may not adapt or
        read the model meanwhile.

        Args:
            prompt: a text or a conversation, as in `question_of`; a question; or what `retrieve`
                has returned.
            suffix: the text after the cursor.
            chat: whether a text is a user's message; passages then stand where the chat template
                has it.
            seconds: budget for retrieval and training, above 0; None for no limit. Training stops
                before a pass that it expects to end late; ``skipped_steps`` counts the rest.

        Raises:
            TypeError, ValueError: the prompt is no text or conversation, or was retrieved for from
                another datastore.
            RuntimeError: the model is adapted already, or the loss depends on no trained parameter.
            NonFiniteLossError, torch.OutOfMemoryError: training failed. The model is restored.
        """
        deadline = Deadline(seconds)
        if isinstance(prompt, Neighbours):
            neighbours = prompt
            question_of(self.tokenizer, prompt.question, suffix=suffix, chat=chat)
            ours = self.store and self.store.identity
            if neighbours.store is not None and neighbours.store.identity != ours:
                raise ValueError(
                    "adapted: the neighbours belong to another datastore than the finetuner's"
                )
        else:
            question = question_of(self.tokenizer, prompt, suffix=suffix, chat=chat)
            neighbours = retrieve(question, self.n_neighbours, self.search)
        spent = dict(neighbours.seconds)
        start = perf_counter()
        prepared = self.prepare(neighbours)
        spent["select"] = perf_counter() - start
        with self.changed(prepared, deadline) as (training, reports):
            spent["finetune"] = perf_counter() - start - spent["select"]
            prefix = prefix_of(prepared)
            adaptation = Adaptation(
                self.language_model, neighbours, prefix, training, reports, spent
            )
            adaptation.prefill()
            try:
                yield adaptation
            finally:
                adaptation.has_ended = True

    def generate(self, prompt: Any, **options: Any) -> Any:
        """Adapt to ``prompt``, continue it, restore the model.

        Args:
            prompt: a text; a conversation, a list of messages with a "role" and a "content"; a
                question; or a list of such prompts.
            options: as in `generate_each`.

        Returns:
            The continuation, or for a list their list.

        Raises as `adapted` and `Adaptation.generate`.
        """
        if isinstance(prompt, list) and not (prompt and isinstance(prompt[0], dict)):
            texts = dict(self.generate_each(prompt, **options))
            return [texts[position] for position in range(len(prompt))]
        [(_, text)] = self.generate_each([prompt], **options)
        return text

    def generate_each(
        self,
        prompts: Sequence[Prompt | Question],
        *,
        suffix: str = "",
        chat: bool = False,
        seconds: float | None = None,
        batch_size: int = 8,
        **options: Any,
    ) -> Iterator[tuple[int, str]]:
        """Continue many prompts; yield the position of each and its continuation when it is ready.

        The model adapts to one after the other. Without steps it continues prompts of similar
        length together, and an adapter stays on its weights until the iterator ends or is closed.
        In float32 that gives the texts of one at a time, if nothing is sampled.

        Args:
            prompts: texts, conversations and questions.
            suffix: the text after the cursor of each text; a question has its own.
            chat: whether texts are messages of a user.
            seconds: as in `adapted`, for each prompt.
            batch_size: how many to continue together at most. A model that keeps more of what it
                has read than keys and values, as Mamba does, or whose positions padding moves,
                continues one at a time.
            options: for ``model.generate``, as in `Adaptation.generate`.

        Raises as `adapted` and `Adaptation.generate`.
        """
        check_integer("generate", "batch_size", batch_size, 1)
        questions = [
            question_of(self.tokenizer, prompt, suffix=suffix, chat=chat)
            for prompt in prompts
        ]
        if any(technique.trains for technique in self.techniques):
            for position, question in enumerate(questions):
                with self.adapted(question, seconds=seconds) as adaptation:
                    text = adaptation.generate(**options)
                yield position, text
            return
        size = batch_size if self.language_model.takes_padding else 1
        by_length = sorted(range(len(prompts)), key=lambda i: len(questions[i].text))
        prepared = (self.prepare(self.retrieve(questions[i])) for i in by_length)
        # Changes of weights that do not depend on the prompt come from the first.
        first = next(prepared, [])
        remaining = chain([first], prepared)
        with self.changed(first, Deadline(None)):
            for start in range(0, len(prompts), size):
                batch = by_length[start : start + size]
                # Their passages are not read before.
                prefixes = [prefix_of(each) for each in islice(remaining, len(batch))]
                texts = continue_questions(
                    self.language_model,
                    [questions[i] for i in batch],
                    prefixes,
                    **options,
                )
                self._return_memory()
                yield from zip(batch, texts, strict=True)

    def prepare(self, neighbours: Neighbours) -> list[Prepared]:
        """What each technique does for the question of ``neighbours``."""
        return [
            each.prepare(neighbours, self.language_model) for each in self.techniques
        ]

    @block
    def changed(
        self, prepared: Sequence[Prepared], deadline: Deadline
    ) -> Iterator[tuple[Training, dict[type, Any]]]:
        """Change the weights in turn, and restore them at the end of the body. Yields the training,
        and the reports of the techniques by their classes."""
        changes = any(each.change_weights for each in prepared)
        trained = self._trainable.parameters if changes else []
        if changes:
            trains = any(each.trains for each in self.techniques)
            with out_of_memory_explained(OUT_OF_MEMORY):
                self._trainable.check_memory(trains=trains)
        with (
            at_exit(self._return_memory),
            exclusive(self.model, adapts=True),
            restored(self.model, trained, self._trainable.copies if changes else []),
        ):
            training = Training(self._trainable, self.config, deadline)
            with out_of_memory_explained(OUT_OF_MEMORY):
                reports = {
                    type(technique): each.change_weights(training)
                    for technique, each in zip(self.techniques, prepared, strict=False)
                    if each.change_weights
                }
            yield training, reports

    def _return_memory(self) -> None:
        size = sum(parameter.nbytes for parameter in self.model.parameters())
        if size >= _LARGE:
            return_freed_memory()
