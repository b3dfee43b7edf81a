"""The model ``hullft`` of the harness: what retrieval sees, and what stays as `HFLM` has it."""

import os
import runpy
import tomllib
import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pytest
import torch
from lm_eval import evaluator, tasks
from lm_eval.api.instance import Instance
from lm_eval.api.model import CachingLM, hash_args
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer

from hullft_ops.lm_eval import HullftLM
from hullft_ops.lm_eval import model as documents_module
from hullft_ops.ttft import (
    Datastore,
    Experts,
    MemoryStore,
    TestTimeFinetuner,
    build_experts,
    load_embedder,
    tiny_lm_path,
)
from hullft_ops.ttft.retrieval.support import SEPARATOR

ROOT = Path(__file__).parents[2]
TASKS = ROOT / "benchmarks" / "harness"
TEXTS = [f"def area_{n}(side):\n    return {n} * side" for n in range(12)]
STEPS = {"n_select": 2, "lr": 1e-3, "pool_size": 4}
UNTIL = {"until": ["\n\n"], "max_gen_toks": 4}


class Recorder:
    """An embedder that counts words by hash, and keeps what it was asked for."""

    name = "recorder"
    dim = 16

    def __init__(self) -> None:
        self.seen: list[str] = []

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        self.seen += texts
        vectors = np.full((len(texts), self.dim), 0.1)
        for vector, text in zip(vectors, texts, strict=True):
            for word in text.split():
                vector[zlib.crc32(word.encode()) % self.dim] += 1
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors.astype(np.float32)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """The same bits each time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def loaded() -> dict[str, Any]:
    model = AutoModelForCausalLM.from_pretrained(tiny_lm_path(), dtype=torch.float32)
    return {
        "pretrained": model,
        "tokenizer": AutoTokenizer.from_pretrained(tiny_lm_path()),
        "batch_size": 3,
    }


@pytest.fixture(scope="module")
def plain(loaded) -> HFLM:
    return HFLM(**loaded)


@pytest.fixture
def embedder() -> Recorder:
    return Recorder()


@pytest.fixture
def store(embedder) -> MemoryStore:
    store = MemoryStore(TEXTS, embedder.encode(TEXTS), embedder.name)
    embedder.seen.clear()
    return store


@pytest.fixture
def adapting(loaded, store, embedder):
    """Makes a model that takes two large steps, or what the arguments say."""

    def make(**arguments: Any) -> HullftLM:
        given = STEPS | arguments
        return HullftLM(**loaded, store=store, embedder=embedder, **given)

    return make


def scored(document: int | None, context: str, continuation: str) -> Instance:
    return Instance(
        "loglikelihood", {}, (context, continuation), 0, ("task", document, 1)
    )


def rolling(document: int, text: str) -> Instance:
    return Instance("loglikelihood_rolling", {}, (text,), 0, ("task", document, 1))


def generated(document: int, context: str) -> Instance:
    return Instance("generate_until", {}, (context, UNTIL), 0, ("task", document, 1))


def bits_of(model: torch.nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def local_requests(task: str, count: int) -> list[Instance]:
    loaded = TaskManager(include_path=str(TASKS), include_defaults=False).load([task])
    loaded["tasks"][task].build_all_requests(limit=count, rank=0, world_size=1)
    return list(loaded["tasks"][task].instances)


# Without steps


def test_without_steps_every_answer_is_that_of_hf(loaded, plain, monkeypatch):
    mine = HullftLM(**loaded, n_select=0)
    choices, texts = (
        local_requests(f"docstrings_{kind}", 3) for kind in ("choice", "text")
    )
    assert (len(choices), len(texts)) == (12, 3)
    assert mine.loglikelihood(choices) == plain.loglikelihood(choices)
    assert mine.loglikelihood_rolling(texts) == plain.loglikelihood_rolling(texts)
    asked = [generated(i, request.args[0]) for i, request in enumerate(choices[::8])]
    assert mine.generate_until(asked) == plain.generate_until(asked)
    # A document's requests cannot fill batches of their own: all are asked at once.
    batches: list[int] = []
    answer = HFLM._loglikelihood_tokens

    def count(self: HFLM, requests: list[Any], **options: Any) -> Any:
        batches.append(len(requests))
        return answer(self, requests, **options)

    monkeypatch.setattr(HFLM, "_loglikelihood_tokens", count)
    mine.loglikelihood(choices)
    assert batches == [12]


# What is adapted to


def test_a_document_is_adapted_to_once(adapting, plain, monkeypatch):
    asked: list[str] = []
    adapted = TestTimeFinetuner.adapted

    def record(self: TestTimeFinetuner, prompt: str, **options: Any) -> Any:
        asked.append(prompt)
        assert options == {"seconds": None}
        return adapted(self, prompt, **options)

    monkeypatch.setattr(TestTimeFinetuner, "adapted", record)
    questions = ["def area_3(side):", "def area_5(side):"]
    # As the harness may order them, and one of them repeated.
    requests = [
        scored(i, questions[i], f" return {n}") for n in range(2) for i in range(2)
    ]
    requests.append(requests[0])
    model = adapting()
    answers = model.loglikelihood(requests)
    assert asked == questions
    assert answers[0] == answers[-1]
    # Each answer is at the place of its request.
    for i, question in enumerate(questions):
        alone = [request for request in requests if request.args[0] == question]
        places = [
            n for n, request in enumerate(requests) if request.args[0] == question
        ]
        assert [answers[place] for place in places] == model.loglikelihood(alone), i
    assert all(
        a != b for a, b in zip(answers, plain.loglikelihood(requests), strict=True)
    )


@pytest.mark.parametrize("merging", [False, True])
def test_answers_are_those_of_hf_on_the_adapted_model(
    adapting, plain, store, embedder, tmp_path, merging
):
    settings = dict(STEPS)
    if merging:
        folder = tmp_path / "experts"
        size = {"clusters": 2, "rank": 2, "passages": 1, "lr": 1e-2}
        build_experts(plain.model, plain.tokenizer, store, folder, **size)
        settings = {"n_select": 0, "experts": Experts.open(folder), "n_experts": 1}
    question = "def area_3(side):"
    requests = [scored(0, question, answer) for answer in (" return 3", " pass")]
    finetuner = TestTimeFinetuner(
        plain.model, plain.tokenizer, store, embedder, **settings
    )
    with finetuner.adapted(question) as report:
        wanted = plain.loglikelihood(requests)
    assert report.expert_indices if merging else report.optimizer_steps == 2
    assert wanted != plain.loglikelihood(requests)
    if merging:
        settings["experts"] = str(folder)
    assert adapting(**settings).loglikelihood(requests) == wanted


def test_retrieval_sees_the_question_and_no_answer(adapting, embedder):
    model = adapting()
    model.loglikelihood(
        [scored(0, "Area of a side?", answer) for answer in (" red", " blue")]
    )
    model.generate_until([generated(0, "Which colour is it?")])
    # As in winogrande: the contexts hold the choices, the continuation is what they share.
    choices = ("Kelly", "Kenneth")
    requests = [scored(1, f"It fell, so {name}", " cried") for name in choices]
    model.loglikelihood(requests)
    assert embedder.seen == ["Area of a side?", "Which colour is it?", "It fell, so "]
    embedder.seen.clear()
    model.loglikelihood_rolling([rolling(0, TEXTS[0])])
    assert embedder.seen == [TEXTS[0]]


@pytest.mark.parametrize(
    ("contexts", "wanted"),
    [
        (["Who?"], "Who?"),
        (["Who?", "Who?"], "Who?"),
        (["The table", "The tablecloth"], "The "),
        (["so Kelly", "so Kenneth"], "so "),
        (["因为下雨，张三", "因为下雨，张四"], "因为下雨，"),  # noqa: RUF001
        (["red", "blue"], None),
        (["\n red", "\n blue"], None),
    ],
)
def test_the_question_is_what_contexts_share_before_a_choice(contexts, wanted):
    assert documents_module.question(contexts) == wanted


def test_a_request_without_a_question_gets_the_model_as_it_is(
    adapting, plain, embedder, caplog
):
    # As for acc_mutual_info: each choice by itself too.
    asked = [
        scored(0, context, " 3 * side") for context in ("return", "", "return", "")
    ]
    asked += [scored(1, "red", " one"), scored(1, "blue", " one")]
    answers = adapting().loglikelihood(asked)
    known = plain.loglikelihood(asked)
    assert embedder.seen == ["return"]
    same = [
        a == pytest.approx(b, abs=1e-4) for a, b in zip(answers, known, strict=True)
    ]
    assert same == [False, True, False, True, True, True]
    assert "4 of 6 requests get the model as it is" in caplog.text


def test_requests_without_a_number_are_documents_of_their_own(adapting, embedder):
    adapting().loglikelihood(
        [scored(None, "one two", " a"), scored(None, "one six", " a")]
    )
    assert embedder.seen == ["one two", "one six"]


def test_of_a_long_question_the_embedder_reads_the_end():
    embedder = load_embedder()
    text = " ".join(f"example {n}" for n in range(300)) + " the question"
    end = documents_module.readable_end(text, embedder)
    assert text.endswith(end)
    ids = embedder.tokenizer(end, add_special_tokens=False)["input_ids"]
    assert len(ids) == 254
    assert documents_module.readable_end("the question", embedder) == "the question"
    recorder = Recorder()
    assert documents_module.readable_end(text, recorder) == text


# What comes back


def test_the_model_is_restored_after_an_exception(adapting, loaded, monkeypatch):
    model = adapting()
    before, hook = bits_of(model.model), model.cache_hook
    during: list[bool] = []

    def fail(*_: Any, **__: Any) -> None:
        during.append(
            all(
                torch.equal(a, b)
                for a, b in zip(before, bits_of(model.model), strict=True)
            )
        )
        raise KeyboardInterrupt

    for method, request in (
        ("loglikelihood", scored(0, "def area", "_3")),
        ("loglikelihood_rolling", rolling(0, "def area")),
        ("generate_until", generated(0, "def area")),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(HFLM, "_model_call", fail)
            patch.setattr(HFLM, "_model_generate", fail)
            with pytest.raises(KeyboardInterrupt):
                getattr(model, method)([request])
        after = bits_of(model.model)
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        assert (model.cache_hook, model.world_size) == (hook, 1)
    assert during == [False] * 3


def test_the_cache_gets_whole_documents(adapting, tmp_path, monkeypatch):
    """Or a run that goes on after a kill would take one choice for the question."""
    model = adapting(context=1)
    cached = CachingLM(model, str(tmp_path / "cache.db"))
    requests = [
        scored(i, f"so {name}", " cried")
        for i in range(2)
        for name in ("Al", "Bo", "Cy")
    ]
    requests += [
        scored(2, f"but {name}", " cried") for name in ("Al", "Bo", "Cy", "Di")
    ]
    calls = iter(range(100))
    call = HFLM._model_call

    def interrupted(self: HFLM, *arguments: Any, **options: Any) -> Any:
        # Batches of 3: the third document has a second one.
        if next(calls) == 3:
            raise KeyboardInterrupt
        return call(self, *arguments, **options)

    monkeypatch.setattr(HFLM, "_model_call", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cached.loglikelihood(requests)
    held = [
        hash_args("loglikelihood", request.args) in cached.dbdict
        for request in requests
    ]
    assert held == [True] * 6 + [False] * 4
    cached.dbdict.close()


def test_ranks_do_not_wait_for_each_other_in_a_document(adapting, monkeypatch):
    model = adapting()
    monkeypatch.setattr(model, "_world_size", 2)
    monkeypatch.setattr(
        model, "all_gather", lambda _: pytest.fail("another rank is waited for")
    )
    assert (
        len(model.loglikelihood_rolling([rolling(0, "def area"), rolling(1, "return")]))
        == 2
    )
    assert model.world_size == 2


# Texts in the context


def test_texts_stand_before_the_context_nearest_last(adapting, plain):
    question = "def area_3(side): return"
    requests = [scored(0, question, " 3"), scored(0, question, " 4 * side")]
    model = adapting(n_select=0, context=2)
    with model._finetuner.adapted(question) as report:
        texts = [TEXTS[i] for i in report.context_indices]
    assert len(texts) == 2
    before = "".join(text + SEPARATOR for text in texts)
    behind = [
        scored(0, before + context, answer)
        for context, answer in (r.args for r in requests)
    ]
    assert model.loglikelihood(requests) == plain.loglikelihood(behind)
    asked = [generated(0, question)]
    assert model.generate_until(asked) == plain.generate_until(
        [generated(0, before + question)]
    )
    # A text by itself: its tokens behind the others, in one pass.
    [answer] = model.loglikelihood_rolling([rolling(0, question)])
    ids = plain.tok_encode(question)
    read = [
        plain.prefix_token_id,
        *(i for t in texts for i in plain.tok_encode(t + SEPARATOR)),
    ]
    with torch.no_grad():
        logits = plain.model(torch.tensor([[*read, *ids]])).logits[
            0, len(read) - 1 : -1
        ]
    wanted = logits.log_softmax(-1)[torch.arange(len(ids)), ids].sum()
    assert answer == pytest.approx(float(wanted), abs=1e-3)


def test_the_farthest_texts_go_until_the_rest_fits(adapting, plain, monkeypatch):
    question = "def area_3(side): return"
    longest: list[int] = []
    encode_pair = HFLM._encode_pair

    def record(self: HFLM, context: str, continuation: str) -> Any:
        pair = encode_pair(self, context, continuation)
        longest.append(sum(map(len, pair)))
        return pair

    monkeypatch.setattr(HFLM, "_encode_pair", record)
    size = len(plain.tok_encode(TEXTS[3] + SEPARATOR))
    room = len(plain.tok_encode(question + " 3")) + 2 * size + size // 2
    adapting(n_select=0, context=6, max_length=room).loglikelihood(
        [scored(0, question, " 3")]
    )
    assert room - size < longest[0] <= room


def test_texts_stand_before_each_window_of_a_long_text(adapting, plain, monkeypatch):
    windows: list[tuple[list[int], list[int]]] = []
    answer = HFLM._loglikelihood_tokens

    def record(self: HFLM, requests: list[Any], **options: Any) -> Any:
        windows.extend((read, scored) for _, read, scored in requests)
        return answer(self, requests, **options)

    monkeypatch.setattr(HFLM, "_loglikelihood_tokens", record)
    text = "\n".join(TEXTS)
    adapting(n_select=0, context=1, max_length=64).loglikelihood_rolling(
        [rolling(0, text)]
    )
    assert [token for _, scored in windows for token in scored] == plain.tok_encode(
        text
    )
    (first, *_), *others = windows
    assert others
    assert first[0] == plain.prefix_token_id
    before = first[1:]
    assert plain.tok_decode(before) in {one + SEPARATOR for one in TEXTS}
    for read, scored in windows:
        assert before == (read[1:] if read is first else read)[: len(before)]
        # The model reads all but the last token.
        assert len(read) + len(scored) <= 65


# How it is asked for


def test_steps_need_a_store_and_batches_of_a_known_size(loaded, adapting):
    with pytest.raises(
        ValueError,
        match="hullft: store must be given for n_select or",
    ):
        HullftLM(**loaded)
    with pytest.raises(
        ValueError, match="hullft: batch_size must be a number .* got auto"
    ):
        HullftLM(
            **loaded | {"batch_size": "auto"},
            store=MemoryStore(["a"], np.ones((1, 1), np.float32), "x"),
        )
    with pytest.raises(ValueError, match="n_select must be in 0"):
        adapting(n_select=-1)


def test_the_command_line_has_the_model(tmp_path, monkeypatch, capsys):
    store = Datastore.build(TEXTS, load_embedder(), tmp_path / "store", progress=False)
    assert len(store) == len(TEXTS)
    settings = (
        f"pretrained={tiny_lm_path()},store={tmp_path / 'store'},n_select=2,refresh=1"
    )
    settings += ",method=knn,lr=2e-4,seconds=60,context=1,pool_size=4,max_length=256"
    arguments = [
        "run",
        "--model",
        "hullft",
        "--model_args",
        settings,
        "--device",
        "cpu",
    ]
    arguments += [
        "--include_path",
        str(TASKS),
        "--tasks",
        "docstrings_choice",
        "--limit",
        "1",
    ]
    monkeypatch.setattr("sys.argv", ["lm_eval", *arguments])
    # Most of the time would go into reading all of its tasks, and into describing the machine.
    monkeypatch.setattr(
        tasks, "TaskManager", partial(TaskManager, include_defaults=False)
    )
    monkeypatch.setattr(evaluator, "add_env_info", lambda _: None)
    runpy.run_module("hullft_ops.lm_eval", run_name="__main__")
    printed = capsys.readouterr().out
    assert "hullft (" in printed
    assert "docstrings_choice" in printed
    assert "acc_norm" in printed


def test_the_entry_point_is_the_model():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    group = "lm_eval.models"
    [(name, value)] = project["entry-points"][group].items()
    assert name == "hullft"
    assert EntryPoint(name, value, group).load() is HullftLM
