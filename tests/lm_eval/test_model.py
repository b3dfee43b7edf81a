"""The model ``hullft`` of the harness: what retrieval reads, and what stays as `HFLM` has it."""

import os
import runpy
import zlib
from collections.abc import Sequence
from functools import partial
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

from hullft_ops.lm_eval import HullftLM
from hullft_ops.lm_eval import model as module
from hullft_ops.lm_eval.model import with_passages
from hullft_ops.ttft import (
    Datastore,
    MemoryStore,
    load_embedder,
    load_model,
    tiny_lm_path,
)

ROOT = Path(__file__).parents[2]
TASKS = ROOT / "benchmarks" / "harness"
TEXTS = [f"def area_{n}(side):\n    return {n} * side" for n in range(12)]
QUESTION = "def area_3(side): return"


class Recorder:
    """An embedder that counts words by hash, and remembers what it has read."""

    name = "recorder"
    dim = 16

    def __init__(self) -> None:
        self.read: list[str] = []

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        self.read += texts
        vectors = np.full((len(texts), self.dim), 0.1)
        for vector, text in zip(vectors, texts, strict=True):
            for word in text.split():
                vector[zlib.crc32(word.encode()) % self.dim] += 1
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors.astype(np.float32)


@pytest.fixture(scope="module")
def loaded() -> dict[str, Any]:
    model, tokenizer = load_model(None)
    return {"pretrained": model, "tokenizer": tokenizer, "batch_size": 3}


@pytest.fixture(scope="module")
def plain(loaded) -> HFLM:
    return HFLM(**loaded)


@pytest.fixture
def embedder() -> Recorder:
    return Recorder()


@pytest.fixture
def store(embedder) -> MemoryStore:
    store = MemoryStore(TEXTS, embedder.encode(TEXTS), embedder.name)
    embedder.read.clear()
    return store


@pytest.fixture
def adapting(loaded, store, embedder):
    """Makes a model that takes two large steps, or what the options say."""

    def make(**options: Any) -> HullftLM:
        defaults = {"n_select": 2, "lr": 1e-3, "pool_size": 4, "context": 0}
        return HullftLM(
            **loaded, store=store, embedder=embedder, **(defaults | options)
        )

    return make


def scored(document: int, context: str, continuation: str) -> Instance:
    """A request for the likelihood of the continuation, as the harness makes it."""
    arguments = (context, continuation)
    return Instance("loglikelihood", {}, arguments, 0, ("task", document, 1))


def rolling(document: int, text: str) -> Instance:
    """A request for the likelihood of the whole text."""
    return Instance("loglikelihood_rolling", {}, (text,), 0, ("task", document, 1))


def generated(document: int, context: str) -> Instance:
    """A request for at most four tokens after the context."""
    options = {"until": ["\n\n"], "max_gen_toks": 4}
    arguments = (context, options)
    return Instance("generate_until", {}, arguments, 0, ("task", document, 1))


def weights(model: HullftLM) -> torch.Tensor:
    """A copy of all parameters."""
    parameters = model.model.parameters()
    return torch.cat([parameter.detach().flatten() for parameter in parameters])


def local_requests(task: str, count: int) -> list[Instance]:
    """The requests of a task's first documents, without network."""
    manager = TaskManager(include_path=str(TASKS), include_defaults=False)
    built = manager.load([task])["tasks"][task]
    built.build_all_requests(limit=count, rank=0, world_size=1)
    return list(built.instances)


def test_without_steps_answers_are_those_of_hf(loaded, plain, adapting):
    # Four choices of each document.
    choices = local_requests("docstrings_choice", 3)
    assert len(choices) == 12
    of_choices = np.array(plain.loglikelihood(choices))

    texts = local_requests("docstrings_text", 3)
    assert len(texts) == 3
    of_texts = plain.loglikelihood_rolling(texts)

    prompts = [
        generated(number, text.args[0][:200]) for number, text in enumerate(texts)
    ]
    of_prompts = plain.generate_until(prompts)

    # Without a datastore, and with one.
    for model in (HullftLM(**loaded, n_select=0, context=0), adapting(n_select=0)):
        answers = np.array(model.loglikelihood(choices))
        assert answers == pytest.approx(of_choices, rel=1e-5)
        answers = model.loglikelihood_rolling(texts)
        assert answers == pytest.approx(of_texts, rel=1e-5)
        assert model.generate_until(prompts) == of_prompts


def test_a_document_is_adapted_to_once_and_answers_are_those_of_the_adapted_model(
    adapting, plain, embedder
):
    questions = [QUESTION, "def area_5(side):"]
    # Not one document after the other.
    requests = [
        scored(0, questions[0], " 0"),
        scored(1, questions[1], " 0"),
        scored(0, questions[0], " 1"),
        scored(1, questions[1], " 1"),
    ]
    model = adapting()
    before = weights(model)
    answers = model.loglikelihood(requests)
    assert torch.equal(weights(model), before)
    assert embedder.read == questions
    for document, question in enumerate(questions):
        with model._finetuner.adapted(question) as adaptation:
            assert sum(adaptation.steps) == 2
            expected = plain.loglikelihood(requests[document::2])
        assert answers[document::2] == expected
        assert expected != plain.loglikelihood(requests[document::2])


def test_retrieval_reads_the_question_and_no_answer(adapting, embedder):
    model = adapting()
    choices = [scored(0, "Area of a side?", color) for color in (" red", " blue")]
    model.loglikelihood(choices)

    model.generate_until([generated(0, "Which colour is it?")])

    # As in winogrande: the contexts hold the choices, the continuation is what they share.
    names = [scored(1, f"It fell, so {name}", " cried") for name in ("Al", "Bo")]
    model.loglikelihood(names)

    model.loglikelihood_rolling([rolling(0, TEXTS[0])])
    assert embedder.read == [
        "Area of a side?",
        "Which colour is it?",
        "It fell, so ",
        TEXTS[0],
    ]


def test_of_a_long_question_the_embedder_reads_the_end():
    embedder = load_embedder()
    text = " ".join(f"example {n}" for n in range(300)) + " the question"
    end = module.end_within(text, embedder)
    assert text.endswith(end)
    ids = embedder.tokenizer(end, add_special_tokens=False)["input_ids"]
    assert len(ids) == embedder.max_tokens == 254
    assert module.end_within("the question", embedder) == "the question"
    assert module.end_within(text, Recorder()) == text


def test_a_request_without_a_question_gets_the_model_as_it_is(
    adapting, plain, embedder
):
    requests = [
        # As for acc_mutual_info: each choice by itself too.
        scored(0, "return", " 3 * side"),
        scored(0, "", " 3 * side"),
        scored(0, "return", " 4 * side"),
        scored(0, "", " 4 * side"),
        # Choices with nothing in common.
        scored(1, "red", " one"),
        scored(1, "blue", " one"),
    ]
    with pytest.warns(UserWarning, match="without a question"):
        answers = adapting().loglikelihood(requests)
    assert embedder.read == ["return"]
    expected = plain.loglikelihood(requests)
    same = np.isclose(answers, expected, rtol=1e-5).all(axis=1)
    assert same.tolist() == [False, True, False, True, True, True]


def test_a_document_that_a_kill_cuts_off_is_not_cached(adapting, tmp_path, monkeypatch):
    """Or a run that goes on would take one choice for the question."""
    model = adapting()
    before = weights(model)
    cached = CachingLM(model, str(tmp_path / "cache.db"))
    requests = [scored(0, f"so {name}", " cried") for name in ("Al", "Bo", "Cy", "Di")]
    keys = [hash_args("loglikelihood", request.args) for request in requests]
    calls = []
    call = HFLM._model_call

    def interrupted(self: HFLM, *arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        # A document takes two batches.
        if len(calls) == 2:
            raise KeyboardInterrupt
        return call(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(HFLM, "_model_call", interrupted)
        with pytest.raises(KeyboardInterrupt):
            cached.loglikelihood(requests)
    assert not any(key in cached.dbdict for key in keys)
    assert torch.equal(weights(model), before)

    cached.loglikelihood(requests)
    assert all(key in cached.dbdict for key in keys)
    cached.dbdict.close()


def test_retrieved_passages_stand_before_the_context_nearest_last(adapting, plain):
    model = adapting(n_select=0, context=2)
    farther, nearer = model._finetuner.select(QUESTION).context_indices
    behind = f"{TEXTS[farther]}\n\n{TEXTS[nearer]}\n\n{QUESTION}"

    answers = model.loglikelihood([scored(0, QUESTION, " 3")])
    assert answers == plain.loglikelihood([scored(0, behind, " 3")])

    answers = model.generate_until([generated(0, QUESTION)])
    assert answers == plain.generate_until([generated(0, behind)])

    text = [rolling(0, QUESTION)]
    with pytest.warns(UserWarning, match="no retrieved passages"):
        answers = model.loglikelihood_rolling(text)
    assert answers == plain.loglikelihood_rolling(text)


def test_passages_stand_behind_the_token_that_opens_a_chat():
    assert (
        with_passages(["a\n\n", "b\n\n"], "<s>[user]", "<s>") == "<s>a\n\nb\n\n[user]"
    )
    assert with_passages(["a\n\n"], "[user]", "<s>") == "a\n\n[user]"
    assert with_passages(["a\n\n"], "[user]", None) == "a\n\n[user]"


def test_the_farthest_passages_go_until_the_rest_fits(adapting, plain):
    lengths = [len(plain.tok_encode(text + "\n\n")) for text in TEXTS]
    question = len(plain.tok_encode(QUESTION))
    room = 2 * max(lengths) + min(lengths) // 2
    limit = question + room + plain.max_gen_toks
    model = adapting(n_select=0, context=6, max_length=limit)
    *dropped, farther, nearer = model._finetuner.select(QUESTION).context_indices
    assert len(dropped) == 4

    answers = model.loglikelihood([scored(0, QUESTION, " 3")])
    behind = f"{TEXTS[farther]}\n\n{TEXTS[nearer]}\n\n{QUESTION}"
    assert answers == plain.loglikelihood([scored(0, behind, " 3")])


def test_steps_need_a_store_and_batches_of_a_known_size(loaded, adapting):
    with pytest.raises(ValueError, match="hullft: store must be given"):
        HullftLM(**loaded)

    loaded = loaded | {"batch_size": "auto"}
    store = MemoryStore(["a"], np.ones((1, 1), np.float32), "x")
    with pytest.raises(ValueError, match="batch_size must be a number"):
        HullftLM(**loaded, store=store)


def test_the_command_line_has_the_model(tmp_path, monkeypatch, capsys):
    Datastore.build(TEXTS, load_embedder(), tmp_path / "store")
    settings = [
        f"pretrained={tiny_lm_path()}",
        f"store={tmp_path / 'store'}",
        "method=knn",
        "n_select=2",
        "seconds=60",
        "context=1",
        "max_length=400",
    ]
    command = [
        "lm_eval",
        "run",
        "--model=hullft",
        f"--model_args={','.join(settings)}",
        "--device=cpu",
        "--limit=1",
        f"--include_path={TASKS}",
        "--tasks=docstrings_choice",
    ]
    monkeypatch.setattr("sys.argv", command)
    # Most of the time would go into reading all of its tasks, and into describing the machine.
    manager = partial(TaskManager, include_defaults=False)
    monkeypatch.setattr(tasks, "TaskManager", manager)
    monkeypatch.setattr(evaluator, "add_env_info", lambda _: None)
    runpy.run_module("hullft_ops.lm_eval", run_name="__main__")
    printed = capsys.readouterr().out
    assert "hullft (" in printed
    assert "acc_norm" in printed

    monkeypatch.setattr("sys.argv", [word.replace("n_sel", "nsel") for word in command])
    with pytest.raises(SystemExit, match="hullft_ops.lm_eval: .*option 'nselect', kn"):
        runpy.run_module("hullft_ops.lm_eval", run_name="__main__")
