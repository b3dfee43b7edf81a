"""Every example runs and does what it says."""

import gc
import os
import re
import runpy
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

os.environ["HF_HUB_OFFLINE"] = "1"

import matplotlib.image
import pytest
import torch
import torch.distributed as dist
import uvicorn
from openai import BadRequestError, OpenAI, RateLimitError
from transformers import TrainingArguments

from hullft_ops.ttft import TestTimeFinetuner, load_model

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name: str, **arguments: object) -> dict[str, Any]:
    result: dict[str, Any] = runpy.run_path(str(EXAMPLES / name))["main"](**arguments)
    return result


def test_a_plain_loop_reuses_gradients() -> None:
    found = run("plain_loop.py")

    assert found["passes"] < 20
    assert found["after"] < found["before"]


def test_lora_on_a_llama_adapts_and_is_undone() -> None:
    found = run("lora_llama.py")

    assert found["adapted"] < 0.9 * found["before"]
    assert found["restored"] == found["before"]


def test_a_plot_shows_what_was_selected(tmp_path: Path) -> None:
    found = run("plot_adaptation.py", output=tmp_path / "adaptation.png")

    assert matplotlib.image.imread(tmp_path / "adaptation.png").shape == (1500, 1200, 4)
    assert 1 < found["selected"] <= found["passes"] < 50


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_trainer_takes_every_step_of_the_multiplicities() -> None:
    found = run("trainer.py")

    assert found["steps"] == 20
    assert found["rows"] < 20
    assert found["after"] < found["before"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gradient_accumulation_steps": 2}, "must be 1, got 2 rows a step"),
        ({"per_device_train_batch_size": 2}, "must be 1, got 2 rows a step"),
        ({"remove_unused_columns": True}, "remove_unused_columns must be False"),
    ],
)
def test_a_trainer_refuses_what_loses_multiplicities(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    plain = {"per_device_train_batch_size": 1, "remove_unused_columns": False}
    args = TrainingArguments(str(tmp_path), **plain | options)
    trainer = runpy.run_path(str(EXAMPLES / "trainer.py"))["ReplayTrainer"]

    with pytest.raises(ValueError, match=message):
        trainer(model=torch.nn.Linear(1, 1), args=args)


def sharded(rank: int, folder: Path) -> None:
    """One of the processes that torchrun would start; they meet in a file, not at a port."""
    meet = partial(
        dist.init_process_group,
        init_method=f"file://{folder / 'rendezvous'}",
        rank=rank,
        world_size=2,
    )
    with (
        patch.object(dist, "init_process_group", meet),
        (folder / f"{rank}.txt").open("w") as printed,
        redirect_stdout(printed),
    ):
        run("fsdp2.py")


def test_two_processes_train_a_sharded_model(tmp_path: Path) -> None:
    torch.multiprocessing.start_processes(
        sharded, (tmp_path,), nprocs=2, start_method="fork"
    )
    printed = (tmp_path / "0.txt").read_text()

    assert "2 processes, 20 steps with 11 gradients" in printed

    before, after = re.findall(r"[\d.]+(?= before| after)", printed)

    assert float(after) < float(before)


@pytest.fixture
def served() -> Iterator[tuple[OpenAI, Any]]:
    """A client of a server with one waiting place, and the finetuner of its toy model."""
    model, tokenizer = load_model(None)
    tokenizer.chat_template = "{{ messages[-1].content }}"
    finetuner = TestTimeFinetuner(model, tokenizer, n_select=0, context=0, ngrams=0)
    application = runpy.run_path(str(EXAMPLES / "serve.py"))["application"]
    config = uvicorn.Config(application(finetuner, waiting=1), log_level="error")
    server = uvicorn.Server(config)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        yield OpenAI(base_url=url, api_key="none", max_retries=0), finetuner
        server.should_exit = True
        thread.join()


ASKED = {"model": "toy", "max_tokens": 12, "temperature": 0}
MESSAGES = [{"role": "user", "content": "def area("}]


def test_a_server_answers_and_streams(served: tuple[OpenAI, Any]) -> None:
    client, finetuner = served
    expected = finetuner.generate("def area(", max_new_tokens=12, do_sample=False)
    completions, chat = client.completions, client.chat.completions
    [whole] = completions.create(prompt="def area(", **ASKED).choices
    [answer] = chat.create(messages=MESSAGES, **ASKED).choices

    assert whole.text == answer.message.content == expected
    assert whole.finish_reason == answer.finish_reason == "length"

    for events in (
        completions.create(prompt="def area(", stream=True, **ASKED),
        chat.create(messages=MESSAGES, stream=True, **ASKED),
    ):
        pieces = [event.choices[0] for event in events]
        texts = [p.text if hasattr(p, "text") else p.delta.content for p in pieces[:-1]]

        assert "".join(texts) == expected
        assert len(pieces) > 2
        assert [piece.finish_reason for piece in pieces[-2:]] == [None, "length"]


def test_a_client_may_go_away(
    served: tuple[OpenAI, Any], caplog: pytest.LogCaptureFixture
) -> None:
    client, _ = served
    ask = partial(client.completions.create, prompt="def area(", temperature=0)
    with ask(model="toy", max_tokens=400, stream=True) as events:
        next(iter(events))

    # The server takes one at a time, so it has left the other.
    assert ask(model="toy", max_tokens=1).choices

    gc.collect()

    assert not caplog.records


def test_a_server_refuses_politely(served: tuple[OpenAI, Any]) -> None:
    client, finetuner = served
    for wrong in ({"stop": "x"}, {"max_tokens": 9999}, {"prompt": ["a", "b"]}):
        with pytest.raises(BadRequestError, match="stop|max_new_tokens|string"):
            client.completions.create(**({"prompt": "a", **ASKED} | wrong))

    turn = threading.Event()

    def slow(*prompt: Any, **options: Any) -> str:
        turn.wait()
        return ""

    with patch.object(finetuner, "generate", slow), ThreadPoolExecutor() as clients:
        ask = partial(client.completions.create, prompt="def", **ASKED)
        answers = [clients.submit(ask) for _ in range(3)]
        [refused, *_] = wait(answers, return_when="FIRST_COMPLETED").done
        turn.set()

    assert isinstance(refused.exception(), RateLimitError)
    assert "too many prompts wait" in str(refused.exception())
    assert sum(answer.exception() is None for answer in answers) == 2
