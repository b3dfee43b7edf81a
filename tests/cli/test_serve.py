"""``hullft-ops serve``, asked as editors and OpenAI's client do."""

import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from openai import OpenAI

from hullft_ops.cli import serve
from hullft_ops.ttft import Datastore, TestTimeFinetuner, load_model
from hullft_ops.ttft.session import Session

pytestmark = pytest.mark.filterwarnings("ignore:the model has no tokens to fill in")

TEXT = "def area("
LINES = [f"def area_{n}(side):\n    return {n} * side * side\n" for n in range(40)]
# What the plugin shows; it asks for the milliseconds of a token, too.
SHOWN = ("prompt_n", "prompt_ms", "prompt_per_second")
SHOWN += ("predicted_n", "predicted_ms", "predicted_per_second")
# What llama.vim sends at commit a1c8e6e4 (s:fim and s:ring_update), llama.vscode at 3938fb35.
CHUNK = {"filename": "a.py", "text": "x = 1\n", "time": [0, 0]}
LLAMA_VIM = {
    "id_slot": 0,
    "input_prefix": "".join(LINES[:9]),
    "input_suffix": "\n\nprint(area(2))\n",
    "input_extra": [CHUNK],
    "prompt": TEXT,
    "n_predict": 128,
    "stop": [],
    "n_indent": 0,
    "top_k": 40,
    "top_p": 0.9,
    "samplers": ["top_k", "top_p", "infill"],
    "stream": False,
    "cache_prompt": True,
    "t_max_prompt_ms": 500,
    "t_max_predict_ms": 250,
    "response_fields": [
        "content",
        *(f"timings/{name}" for name in SHOWN),
        "timings/prompt_per_token_ms",
        "truncated",
        "tokens_cached",
    ],
    "model": "",
}
WARM_UP = LLAMA_VIM | {"input_prefix": "", "input_suffix": "", "prompt": ""}
WARM_UP |= {"n_predict": 0, "temperature": 0.0, "samplers": [], "response_fields": [""]}
WARM_UP |= {"t_max_prompt_ms": 1, "t_max_predict_ms": 1}
LLAMA_VSCODE = {
    name: LLAMA_VIM[name]
    for name in LLAMA_VIM
    if name not in ("stop", "response_fields", "model")
}
LLAMA_VSCODE |= {"n_cmpl": 3, "top_p": 0.99, "t_max_predict_ms": 500}
# Continue at d0a3c0b6, for a model whose name has "qwen" and "coder" (AutocompleteTemplate.ts).
STOPS = ["<|endoftext|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"]
STOPS += ["<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<|im_start|>", "<|im_end|>"]
CONTINUE = {
    "prompt": "<|repo_name|>shapes\n<|file_sep|>a.py\nx = 1\n<|file_sep|>b.py\n"
    f"<|fim_prefix|>{''.join(LINES[:9])}{TEXT}<|fim_suffix|>\n\nprint()\n<|fim_middle|>",
    "model": "qwen2.5-coder",
    "max_tokens": 4096,
    "temperature": 0.01,
    "stream": True,
    "stop": [*STOPS, "/src/", "#- coding: utf-8", "```"],
}
# Zed (crates/edit_prediction/src/fim.rs and open_ai_compatible.rs).
ZED = {
    "model": "qwen2.5-coder",
    "prompt": f"<|fim_prefix|>{TEXT}<|fim_suffix|>\n\nprint()\n<|fim_middle|>",
    "max_tokens": 64,
    "stop": STOPS[:4],
}


class Served:
    """The server of a toy model, and a client."""

    def __init__(self, finetuner: TestTimeFinetuner) -> None:
        self.finetuner = finetuner
        is_up = threading.Event()

        def run() -> None:
            with (
                closing(Session(finetuner)) as self.session,
                serve.Server(("127.0.0.1", 0), self.session, "block") as self.server,
            ):
                is_up.set()
                self.server.serve_forever(poll_interval=0.01)

        self.thread = threading.Thread(target=run)
        self.thread.start()
        assert is_up.wait(60)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.client = OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    def ask(self, path: str, body: Any = None) -> tuple[int, str]:
        """The status and the body of a response."""
        content = None if body is None else json.dumps(body).encode()
        try:
            with urllib.request.urlopen(self.url + path, content, 60) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def stop(self) -> None:
        self.server.shutdown()
        self.thread.join()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    store = Datastore.build(LINES, None, tmp_path / "store", sources=["a.py"] * 40)
    settings = {"search": "windows", "context": 1, "train_on_prompt": 0, "dtype": None}
    served = Served(TestTimeFinetuner(*load_model(None), store, **settings))
    yield served
    served.stop()


def test_llama_vim_is_answered_in_time(served: Served) -> None:
    for limit in (250, 1000):
        start = time.perf_counter()
        status, body = served.ask("/infill", LLAMA_VIM | {"t_max_predict_ms": limit})
        seconds = time.perf_counter() - start
        answer = json.loads(body)

        assert status == 200
        # The plugin looks for this, in the first line.
        assert re.match(r'\{.*"content"\s*:"', body)
        assert answer.keys() >= {f"timings/{name}" for name in SHOWN}
        assert answer.keys() < {*LLAMA_VIM["response_fields"]}
        assert answer["content"]
        assert answer["timings/predicted_n"] > 0
        # A busy machine takes longer between two looks at the clock.
        assert seconds < 3 * (0.5 + limit / 1000)

    assert served.ask("/infill", WARM_UP) == (200, "{}")


def test_llama_vscode_finds_its_fields(served: Served) -> None:
    answer = json.loads(served.ask("/infill", LLAMA_VSCODE)[1])

    assert answer["content"]
    assert answer["timings"].keys() == {*SHOWN}
    assert answer["generation_settings"] == {}


def test_marks_of_another_model_tell_what_stands_where(served: Served) -> None:
    with patch.object(served.session, "answer") as asked:
        served.ask("/v1/completions", ZED)
        served.ask("/v1/completions", CONTINUE | {"stream": False})
        served.ask("/infill", LLAMA_VIM)

    zed, continues, vim = asked.call_args_list

    assert zed.args == (TEXT,)
    assert zed.kwargs["suffix"] == "\n\nprint()\n"
    assert zed.kwargs["chunks"] == []
    assert continues.args == ("".join(LINES[:9]) + TEXT,)
    [context] = continues.kwargs["chunks"]

    assert context.startswith("<|repo_name|>shapes\n<|file_sep|>a.py\nx = 1")
    assert continues.kwargs["stop_at"] == zed.kwargs["stop_at"] == "block"
    assert vim.kwargs["chunks"] == ["# a.py\nx = 1\n"]
    # Greedy without a temperature, whatever top_k says.
    assert not vim.kwargs["do_sample"]
    assert continues.kwargs["temperature"] == 0.01


def test_zed_and_continue_are_answered(served: Served) -> None:
    answer = json.loads(served.ask("/v1/completions", ZED)[1])

    assert answer["choices"][0]["text"]
    assert {"id", "object", "created", "model", "usage"} < answer.keys()

    body = served.ask("/v1/completions", CONTINUE)[1]
    *events, done = [line.removeprefix("data: ") for line in body.split("\n\n") if line]

    assert done == "[DONE]"
    assert "".join(json.loads(event)["choices"][0]["text"] for event in events)


def test_openais_client_gets_what_the_model_writes(served: Served) -> None:
    asked: dict[str, Any] = {"model": "toy", "max_tokens": 12}
    messages = [{"role": "user", "content": TEXT}]
    served.finetuner.tokenizer.chat_template = "{{ messages[-1].content }}"
    completions, chat = served.client.completions, served.client.chat.completions
    whole = completions.create(prompt=TEXT, **asked)
    text = whole.choices[0].text
    said = chat.create(messages=messages, **asked)

    assert said.choices[0].message.content == text
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage.completion_tokens == 12

    streams = (
        completions.create(prompt=TEXT, stream=True, **asked),
        chat.create(messages=messages, stream=True, **asked),
    )
    for events in streams:
        choices = [event.choices[0] for event in events]
        pieces = [c.text if hasattr(c, "text") else c.delta.content for c in choices]

        assert "".join(pieces) == text
        assert choices[-1].finish_reason == "length"

    for stop in (text[5:7], [text[5:8], "never"]):
        for stream in (False, True):
            answer = completions.create(prompt=TEXT, stop=stop, stream=stream, **asked)
            events = answer if stream else [answer]

            assert "".join(event.choices[0].text for event in events) == text[:5]

    assert completions.create(prompt=TEXT, max_tokens=0, model="toy").choices
    assert completions.create(prompt=TEXT, temperature=1, top_p=0.5, **asked).choices


def test_a_newer_request_ends_the_one_before(served: Served) -> None:
    endless = LLAMA_VIM | {"t_max_prompt_ms": 0, "t_max_predict_ms": 0}
    with patch.object(serve, "sleep"), ThreadPoolExecutor() as clients:
        whole = json.loads(served.ask("/infill", endless)[1])
        first = clients.submit(served.ask, "/infill", endless)
        time.sleep(0.02)
        second = clients.submit(served.ask, "/infill", LLAMA_VIM)
        ended = json.loads(first.result()[1])

    assert ended["timings/predicted_n"] < whole["timings/predicted_n"]
    assert whole["content"].startswith(ended["content"])
    assert json.loads(second.result()[1])["content"]


def test_a_client_may_go_away(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    ask = served.client.completions.create
    asked: dict[str, Any] = {"model": "toy", "prompt": TEXT, "max_tokens": 100}
    with ask(**asked, stream=True) as events:
        next(iter(events))

    with socket.create_connection(served.server.server_address) as client:
        # Closing resets the connection.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    assert ask(**asked, stop="").choices[0].text
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("before", ["", "\n    "])
def test_nothing_is_written_where_nothing_stands_before(
    served: Served, before: str
) -> None:
    asked = LLAMA_VIM | {"input_prefix": before, "prompt": ""}
    status, body = served.ask("/infill", asked)

    assert (status, json.loads(body)["content"]) == (200, "")


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        (
            "/v1/completions",
            {"prompt": [1]},
            400,
            "prompt must be a valid string, got [1]",
        ),
        ("/v1/completions", {"prompt": " "}, 400, "must have text"),
        ("/v1/completions", [], 400, "request: must be an object, got []"),
        ("/infill", {"n_predict": -2}, 400, "greater than or equal to -1"),
        ("/v1/chat/completions", {"messages": [{}]}, 400, "must"),
        ("/v1/embeddings", {}, 404, "null"),
    ],
)
def test_a_bad_request_says_why(
    served: Served, path: str, body: Any, status: int, message: str
) -> None:
    code, answer = served.ask(path, body)

    assert code == status
    assert message in answer


def test_a_model_that_fails_says_why(served: Served) -> None:
    for parameter in served.finetuner.model.parameters():
        parameter.data.fill_(torch.nan)

    asked = {"prompt": TEXT, "temperature": 1}
    status, answer = served.ask("/v1/completions", asked)

    assert status == 500
    assert "RuntimeError" in answer


def test_it_lists_its_model_and_its_health(served: Served) -> None:
    assert [model.id for model in served.client.models.list()] == ["hullft"]
    assert served.ask("/health") == (200, '{"status":"ok"}')
    assert served.ask("/nothing")[0] == 404


def test_it_follows_the_datastore(served: Served) -> None:
    store = served.finetuner.store
    Datastore.open(store.folder).update({"new.py": "".join(LINES)})

    def stop_after_once(seconds: float) -> None:
        if served.session.finetuner is not served.finetuner:
            raise KeyboardInterrupt

    with (
        patch.object(serve, "sleep", stop_after_once),
        pytest.raises(KeyboardInterrupt),
    ):
        serve._follow(served.session, lambda: Datastore.open(store.folder))

    assert "new.py" in served.session.finetuner.search.store.sources
    assert served.ask("/infill", LLAMA_VIM)[0] == 200


def test_ctrl_c_ends_it(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "a.py").write_text("".join(LINES))
    words = [sys.executable, "-m", "hullft_ops", "serve", "--corpus", "code"]
    # In the background of a shell it is ignored, and a process inherits that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [*words, "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    signal.signal(signal.SIGINT, before)
    line = process.stdout.readline()
    url = line.split()[2].rstrip(",")
    body = json.dumps(LLAMA_VIM).encode()
    with urllib.request.urlopen(f"{url}/infill", body, timeout=60) as response:
        assert json.load(response)["content"]

    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)

    assert process.returncode == 0
    assert "Traceback" not in errors
