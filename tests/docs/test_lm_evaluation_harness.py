"""The example with lm-evaluation-harness: what retrieval reads, and what stays as `HFLM` has it."""

import os
import runpy
import warnings
from functools import partial
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from lm_eval import evaluator, tasks
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from hullft_ops.ttft import (
    Datastore,
    Passage,
    PassageSteps,
    load_embedder,
    load_model,
    tiny_lm_path,
    train_adapter,
)

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "lm_evaluation_harness.py"
TASK = """
task: areas
dataset_path: json
dataset_kwargs: {{data_files: {file}}}
output_type: multiple_choice
test_split: train
doc_to_text: "def area_{{{{side}}}}(side): return"
doc_to_choice: [" 1", " 3"]
doc_to_target: 1
metric_list: [{{metric: acc_norm, aggregation: mean, higher_is_better: true}}]
"""
TEXTS = [f"def area_{n}(side):\n    return {n} * side" for n in range(12)]
QUESTION = "def area_3(side): return"


@pytest.fixture(scope="module")
def example() -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLE))


@pytest.fixture(scope="module")
def hullft(example: dict[str, Any]) -> Any:
    return example["HullftLM"]


@pytest.fixture(scope="module")
def plain() -> HFLM:
    model, tokenizer = load_model(None)
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=3)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("texts") / "store"
    Datastore.build(TEXTS, load_embedder(), folder)
    return str(folder)


@pytest.fixture
def adapting(hullft: Any, store: str) -> Any:
    return hullft(store=store, batch_size=3, n_select=2, lr=1e-3, context=0)


def scored(document: int, context: str, continuation: str) -> Instance:
    """A request for the likelihood of the continuation, as the harness makes it."""
    arguments = (context, continuation)
    return Instance("loglikelihood", {}, arguments, 0, ("task", document, 1))


def generated(document: int, context: str) -> Instance:
    """A request for at most four tokens after the context."""
    options = {"until": ["\n\n"], "max_gen_toks": 4}
    arguments = (context, options)
    return Instance("generate_until", {}, arguments, 0, ("task", document, 1))


def test_a_document_is_adapted_to_once_and_has_the_answers_of_the_adapted_model(
    adapting: Any, plain: HFLM
) -> None:
    questions = [QUESTION, "def area_5(side):"]
    # Not one document after the other, and an answer by itself.
    requests = [
        scored(0, questions[0], " 0"),
        scored(1, questions[1], " 0"),
        scored(0, questions[0], " 1"),
        scored(1, questions[1], " 1"),
        scored(0, "", " 1"),
    ]
    unadapted = plain.loglikelihood(requests)

    with pytest.warns(UserWarning, match="without a question"):
        answers = adapting.loglikelihood(requests)

    assert answers[4] == pytest.approx(unadapted[4], rel=1e-5)

    for document, question in enumerate(questions):
        with adapting.finetuner.adapted(question) as adaptation:
            assert sum(adaptation.report(PassageSteps).steps) == 2
            of_document = adapting.plain_answers(requests[document:4:2])

        assert answers[document:4:2] == of_document
        assert of_document != unadapted[document:4:2]


def test_an_adapter_needs_no_store(
    hullft: Any, plain: HFLM, store: str, tmp_path: Path
) -> None:
    train_adapter(*load_model(None), Datastore.open(store), tmp_path / "adapter")
    options = {"adapter": str(tmp_path / "adapter"), "train_on_prompt": 0, "context": 0}
    adapting = hullft(**options)
    requests = [scored(0, QUESTION, " 3")]
    with adapting.finetuner.adapted(QUESTION):
        expected = adapting.plain_answers(requests)

    assert adapting.loglikelihood(requests) == expected
    assert expected != plain.loglikelihood(requests)


def test_retrieval_reads_the_question_and_no_answer(
    adapting: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    adapted = adapting.finetuner.adapted

    def reading(question: str) -> Any:
        read.append(question)
        return adapted(question)

    monkeypatch.setattr(adapting.finetuner, "adapted", reading)
    adapting.loglikelihood([scored(0, "Area?", color) for color in (" red", " blue")])
    adapting.generate_until([generated(0, "Which colour is it?")])
    # As in winogrande: the contexts hold the choices, the continuation is what they share.
    names = [scored(1, f"It fell, so {name}", " cried") for name in ("Al", "Bo")]
    adapting.loglikelihood(names)
    # With examples before the question, its end.
    examples = " ".join(f"example {n}" for n in range(300))
    adapting.generate_until([generated(2, f"{examples} the question")])

    assert read[:3] == ["Area?", "Which colour is it?", "It fell, so "]
    assert read[3].endswith("example 299 the question")

    ids = load_embedder().tokenizer(read[3], add_special_tokens=False)["input_ids"]

    assert len(ids) == 254


def test_retrieved_passages_that_fit_stand_before_the_context_nearest_last(
    hullft: Any, store: str, plain: HFLM
) -> None:
    lengths = [len(plain.tok_encode(text + "\n\n")) for text in TEXTS]
    question = len(plain.tok_encode(QUESTION))
    room = 2 * max(lengths) + min(lengths) // 2
    limit = question + room + plain.max_gen_toks
    model = hullft(
        store=store, train_on_prompt=0, context=6, dtype=None, max_length=limit
    )
    with model.finetuner.adapted(QUESTION) as adaptation:
        texts = [passage.text for passage in adaptation.passages]

    behind = "".join([*texts[-2:], QUESTION])

    answers = model.loglikelihood([scored(0, QUESTION, " 3")])
    expected = plain.loglikelihood([scored(0, behind, " 3")])

    assert len(texts) == 6
    assert torch.allclose(torch.tensor(answers), torch.tensor(expected), rtol=1e-5)

    bos = plain.tokenizer.bos_token
    passages = [Passage("a\n\n", [1])]
    [chat] = model.behind(passages, [scored(0, f"{bos}hi", "")])

    assert chat.args[0] == f"{bos}a\n\nhi"


def test_the_command_line(
    example: dict[str, Any],
    store: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    documents = tmp_path / "documents.json"
    documents.write_text('{"side": 3}')
    (tmp_path / "areas.yaml").write_text(TASK.format(file=documents))
    arguments = f"pretrained={tiny_lm_path()},store={store},n_select=2,max_length=400"
    command = [
        "lm_eval",
        "run",
        "--model=hullft",
        f"--model_args={arguments}",
        "--device=cpu",
        "--limit=1",
        f"--include_path={tmp_path}",
        "--tasks=areas",
    ]
    monkeypatch.setattr("sys.argv", command)
    # Most of the time would go into reading all of its tasks, and into describing the machine.
    manager = partial(TaskManager, include_defaults=False)
    monkeypatch.setattr(tasks, "TaskManager", manager)
    monkeypatch.setattr(evaluator, "add_env_info", lambda _: None)
    with warnings.catch_warnings(action="ignore"):
        example["main"]()

    printed = capsys.readouterr().out

    assert "hullft (" in printed
    assert "acc_norm" in printed

    command[3] = "--model_args=nselect=2"

    with pytest.raises(SystemExit, match="harness.py: .*option 'nselect'"):
        example["main"]()
