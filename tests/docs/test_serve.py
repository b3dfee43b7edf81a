"""The example of a server, asked by OpenAI's own client and as llama.vim does."""

import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
import uvicorn
from openai import (
    APIStatusError,
    AuthenticationError,
    OpenAI,
    RateLimitError,
)

from hullft_ops.ttft import Datastore, TestTimeFinetuner, load_model
from model_state import unchanged

SERVE = Path(__file__).parents[2] / "examples" / "serve.py"
ASKED = {"model": "toy", "max_tokens": 12, "temperature": 0}
TEXT = "def area("
# What llama.vim sends.
LLAMA_VIM = {
    "id_slot": 0,
    "input_prefix": "import math\n\n",
    "input_suffix": "\n\nprint(area(2))",
    "input_extra": [{"filename": "a.py", "text": "b", "time": 0}],
    "prompt": TEXT,
    "n_predict": 128,
    "stop": [],
    "n_indent": 4,
    "top_k": 40,
    "top_p": 0.9,
    "samplers": ["top_k", "top_p", "infill"],
    "stream": False,
    "cache_prompt": True,
    "t_max_prompt_ms": 500,
    "t_max_predict_ms": 1000,
    "response_fields": ["content", "timings/prompt_n", "truncated"],
}
MESSAGES = [{"role": "user", "content": TEXT}]


class Served:
    """The server of a toy model with one waiting place, and a client."""

    def __init__(self, **options: Any) -> None:
        model, tokenizer = load_model(None)
        tokenizer.chat_template = "{{ messages[-1].content }}"
        self.finetuner = TestTimeFinetuner(
            model, tokenizer, context=0, ngrams=0, train_on_prompt=1
        )
        serve = runpy.run_path(str(SERVE))
        self.server = serve["Server"](self.finetuner, waiting=1, name="toy")
        routes = serve["application"](self.server, **options)
        config = uvicorn.Config(routes, log_level="error")
        self.process = serve["Process"](config, self.server)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.client = self.client_with("none")
        self.thread = threading.Thread(target=self.process.run, args=[[self.listener]])
        self.thread.start()

    def client_with(self, key: str) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0)

    def ask(self, path: str, body: Any = None, **options: Any) -> tuple[int, Any]:
        """The status and the JSON of a response, without OpenAI's client."""
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, body)
        try:
            with urllib.request.urlopen(
                request, **{"timeout": 60} | options
            ) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def allowed(self, origin: str) -> str | None:
        """The origin that a browser may read, of a page from this one."""
        asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        url = f"{self.url}/v1/completions"
        request = urllib.request.Request(url, headers=asked, method="OPTIONS")
        try:
            with urllib.request.urlopen(request) as response:
                return response.headers["access-control-allow-origin"]
        except urllib.error.HTTPError as error:
            return error.headers["access-control-allow-origin"]

    def stop(self) -> None:
        self.process.should_exit = True
        self.thread.join()


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.syspath_prepend(str(SERVE.parent))
    served = Served()
    yield served
    served.stop()


def test_it_answers_and_streams(served: Served) -> None:
    expected = served.finetuner.generate(TEXT, max_new_tokens=12, do_sample=False)
    completions, chat = served.client.completions, served.client.chat.completions
    parts = [{"type": "text", "text": "def "}, {"type": "text", "text": "area("}]
    whole = completions.create(prompt=TEXT, **ASKED)
    answers = [
        chat.create(messages=[{"role": "user", "content": content}], **ASKED)
        for content in (TEXT, parts)
    ]

    assert [choice.text for choice in whole.choices] == [expected]
    assert {answer.choices[0].message.content for answer in answers} == {expected}
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage.completion_tokens == 12
    assert whole.usage.prompt_tokens == len(served.finetuner.tokenizer(TEXT).input_ids)

    counted = {"stream": True, "stream_options": {"include_usage": True}}
    for events in (
        completions.create(prompt=TEXT, **counted, **ASKED),
        chat.create(messages=MESSAGES, **counted, **ASKED),
    ):
        *events, last = events
        pieces = [event.choices[0] for event in events]
        texts = [p.text if hasattr(p, "text") else p.delta.content for p in pieces]

        assert "".join(texts) == expected
        assert len(pieces) > 2
        assert [piece.finish_reason for piece in pieces[-2:]] == [None, "length"]
        assert (last.choices, last.usage) == ([], whole.usage)


def test_the_files_of_the_nearest_passages_are_named(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["def area(side): return side", "a cat sat"]
    sources = ["a.py", "b.txt"]
    store = Datastore.build(texts, None, tmp_path / "store", sources=sources)
    model, tokenizer = served.finetuner.model, served.finetuner.tokenizer
    options = {"search": "lexical", "context": 0, "train_on_prompt": 0}
    finetuner = TestTimeFinetuner(model, tokenizer, store, **options)
    served.server.finetuner = finetuner
    rankings = Mock(side_effect=finetuner.search.rankings)
    monkeypatch.setattr(finetuner.search, "rankings", rankings)
    text = served.client.completions.create(prompt=TEXT, **ASKED)
    chat = served.client.chat.completions.create(messages=MESSAGES, **ASKED)
    [*_, last] = served.client.completions.create(prompt=TEXT, stream=True, **ASKED)

    for answer in (text, chat, last):
        assert answer.choices[0].passages[0] == "a.py"

    assert served.ask("/infill", {"prompt": TEXT})[1]["passages"][0] == "a.py"
    # A search for each answer.
    assert rankings.call_count == 4


def test_each_text_of_a_list_has_a_choice(served: Served) -> None:
    texts = [TEXT, "import"]
    expected = [
        served.finetuner.generate(text, max_new_tokens=12, do_sample=False)
        for text in texts
    ]
    ask = served.client.completions.create
    whole = ask(prompt=texts, **ASKED)

    assert [choice.text for choice in whole.choices] == expected
    assert [choice.index for choice in whole.choices] == [0, 1]

    streamed = {0: "", 1: ""}
    for event in ask(prompt=texts, stream=True, **ASKED):
        streamed[event.choices[0].index] += event.choices[0].text

    assert [*streamed.values()] == expected


def test_a_stop_ends_the_answer_before_it(served: Served) -> None:
    ask = served.client.completions.create
    text = ask(prompt=TEXT, **ASKED).choices[0].text
    for stop in (text[5:7], [text[5:8], "never"], [text[-1]]):
        first = [stop] if isinstance(stop, str) else stop
        expected = text[: text.index(first[0])]
        whole = ask(prompt=TEXT, stop=stop, **ASKED).choices[0]
        events = ask(prompt=TEXT, stop=stop, stream=True, **ASKED)
        pieces = [event.choices[0] for event in events]

        assert whole.text == "".join(piece.text for piece in pieces) == expected
        assert whole.finish_reason == pieces[-1].finish_reason == "stop"


def test_sampling_is_as_asked(served: Served) -> None:
    def ask(**options: Any) -> str:
        asked = {"prompt": TEXT, "model": "toy", "max_tokens": 12} | options
        return str(served.client.completions.create(**asked).choices[0].text)

    greedy = ask(temperature=0)

    assert ask(seed=3) == ask(seed=3) != greedy
    assert ask(seed=3) != ask(seed=4)
    assert ask(top_p=0) == ask(temperature=1e-300) == greedy
    assert ask(max_tokens=0) == ""


def test_what_asks_for_nothing_is_no_error(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    neutral = {"n": 1, "best_of": 1, "echo": False, "user": "me", "logit_bias": {}}
    neutral |= {"frequency_penalty": 0, "presence_penalty": 0.0, "suffix": ""}
    ask = served.client.completions.create

    assert ask(prompt=TEXT, **neutral, **ASKED).choices
    assert not caplog.records
    assert ask(prompt=TEXT, extra_body={"new\n": 1}, **ASKED).choices
    assert "parameter 'new\\n', which is ignored" in caplog.text


LONE = b'{"prompt": "a", "\\ud800": 1}'


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("completions", {}, "prompt: Field required"),
        ("completions", {"prompt": " "}, "prompt: must have text"),
        ("completions", {"prompt": []}, "prompt must be 1 to 2 texts, got 0"),
        ("completions", {"prompt": ["a"] * 3}, "prompt must be 1 to 2 texts, got 3"),
        ("completions", {"prompt": [[1, 2]]}, "should be a valid string"),
        ("completions", {"prompt": "a", "max_tokens": []}, "max_tokens: Input should"),
        ("completions", {"prompt": "a", "max_tokens": 9999}, "must be at most 511"),
        ("completions", {"prompt": "a", "top_p": 2}, "top_p: Input should be less"),
        ("completions", {"prompt": "a", "temperature": float("nan")}, "temperature: "),
        ("completions", {"prompt": "a", "stream": "false"}, "stream: Input should"),
        ("completions", {"prompt": "a", "n": 2}, "n must be 1 or null"),
        ("completions", {"prompt": "a", "echo": True}, "echo must be false or null"),
        ("completions", b"[" * 100_000, "recursion limit"),
        ("completions", LONE, "end of hex escape"),
        ("completions", b"\xff", "Invalid JSON"),
        ("chat/completions", {"messages": ["a", "b"]}, "messages.0: Input should be"),
        ("chat/completions", {"messages": []}, "and one of the user"),
        ("chat/completions", {"messages": [{"role": "user"}]}, "must have "),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "a part of type 'image_url'",
        ),
    ],
)
def test_bad_requests_are_refused_before_the_work(
    served: Served, path: str, body: Any, message: str
) -> None:
    bodies = [body]
    if isinstance(body, dict):
        bodies.append({"stream": True} | body)

    with (
        patch.object(served.finetuner, "generate", side_effect=AssertionError),
        patch.object(served.finetuner, "adapted", side_effect=AssertionError),
    ):
        for each in bodies:
            status, answer = served.ask(f"/v1/{path}", each)

            assert status == 400
            assert message in answer["error"]["message"]


def test_it_lists_its_model_and_its_health(served: Served) -> None:
    assert [model.id for model in served.client.models.list()] == ["toy"]
    assert served.ask("/health") == (200, {"status": "ok"})


def test_an_editor_asks_for_what_stands_between(served: Served) -> None:
    body = LLAMA_VIM | {"n_predict": 8, "n_indent": 0}
    expected = served.finetuner.generate(
        "import math\n\ndef area(", max_new_tokens=8, do_sample=False
    )

    assert served.ask("/infill", body)[1]["content"] == expected
    assert served.ask("/infill", body | {"n_predict": 0})[1]["content"] == ""

    marks = {"<|fim_prefix|>": 300, "<|fim_suffix|>": 301, "<|fim_middle|>": 302}
    function = "hullft_ops.ttft.adaptation.continue_questions"
    tokenizer = served.finetuner.tokenizer
    with (
        patch.object(tokenizer, "get_vocab", lambda: marks),
        patch(function, return_value=["x"]) as written,
    ):
        served.ask("/infill", body)
        served.client.completions.create(prompt="a", suffix="b", **ASKED)

    questions = [call.args[1][0] for call in written.call_args_list]

    assert [each.suffix for each in questions] == ["\n\nprint(area(2))", "b"]
    assert [each.text for each in questions] == ["import math\n\ndef area(", "a"]
    assert {each.ids[-1] for each in questions} == {302}


def test_an_editor_gets_a_block_within_its_time(served: Served) -> None:
    function = "hullft_ops.ttft.adaptation.continue_questions"
    with patch(function, return_value=["x"]) as written:
        served.ask("/infill", LLAMA_VIM)
        served.ask("/infill", LLAMA_VIM | {"temperature": 0.5, "t_max_predict_ms": 0})

    editors, sampled = (call.kwargs for call in written.call_args_list)

    assert editors["stop_at"] == "block"
    assert editors["max_time"] == 1.0
    assert not editors["do_sample"]
    assert sampled["top_k"] == 40
    assert "max_time" not in sampled

    hurried = {"n_predict": 200, "n_indent": 0, "t_max_predict_ms": 1}

    assert len(served.ask("/infill", LLAMA_VIM | hurried)[1]["content"]) < 20


def test_an_infill_is_streamed_without_usage(served: Served) -> None:
    asked = {"n_predict": 4, "stream": True, "stream_options": {"include_usage": True}}
    body = json.dumps(LLAMA_VIM | asked).encode()
    with urllib.request.urlopen(served.url + "/infill", body, timeout=60) as response:
        lines = response.read().decode().split("\n\n")

    [*events, last, done] = [line.removeprefix("data: ") for line in lines if line]

    assert done == "[DONE]"
    assert json.loads(last)["stop"]
    assert not any(json.loads(event)["stop"] for event in events)


def test_a_model_that_fails_says_why(served: Served) -> None:
    for parameter in served.finetuner.model.parameters():
        parameter.data.fill_(torch.nan)

    status, answer = served.ask("/v1/completions", {"prompt": TEXT})

    assert status == 500
    assert "the loss of the prompt is nan" in answer["error"]["message"]


def test_a_client_may_go_away(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    ask = served.client.completions.create
    long = {"model": "toy", "prompt": TEXT, "max_tokens": 400, "temperature": 0}
    with ask(**long, stream=True) as events:
        next(iter(events))

    with pytest.raises(TimeoutError):
        served.ask("/v1/completions", long, timeout=0.3)

    # The server takes one at a time, so it leaves the others.
    patient = served.client.with_options(max_retries=50)

    assert patient.completions.create(**long | {"max_tokens": 1}).choices

    gc.collect()

    assert not caplog.records


def test_fifty_clients_and_an_end_leave_the_model_as_it_was(served: Served) -> None:
    ask = served.client.completions.create
    expected = ask(prompt=TEXT, **ASKED).choices[0].text
    with unchanged(served.finetuner.model), ThreadPoolExecutor(50) as clients:
        asked = [clients.submit(ask, prompt=TEXT, **ASKED) for _ in range(50)]
        errors = [answer.exception() for answer in asked]
        refused = [error for error in errors if error is not None]

        assert all(isinstance(error, RateLimitError) for error in refused)
        assert 50 - len(refused) >= 2
        assert {a.result().choices[0].text for a in asked if not a.exception()} == {
            expected
        }

        waiting = [clients.submit(ask, prompt=TEXT, **ASKED) for _ in range(2)]
        while served.server.current is None:
            pass

        served.process.handle_exit(signal.SIGINT, None)
        served.thread.join()
        [ended] = [answer for answer in waiting if answer.exception()]
        [finished] = [answer for answer in waiting if not answer.exception()]

        assert isinstance(ended.exception(), APIStatusError)
        assert ended.exception().status_code == 503
        assert finished.result().choices[0].text == expected


def test_a_full_queue_refuses(served: Served) -> None:
    turn = threading.Event()

    def slow(*prompt: Any, **options: Any) -> str:
        turn.wait()
        return ""

    ask = served.client.completions.create
    with (
        patch.object(served.finetuner, "generate", slow),
        ThreadPoolExecutor() as clients,
    ):
        answers = [clients.submit(ask, prompt="def", **ASKED) for _ in range(3)]
        [refused, *_] = wait(answers, return_when="FIRST_COMPLETED").done
        turn.set()

    assert isinstance(refused.exception(), RateLimitError)
    assert "too many prompts wait" in str(refused.exception())
    assert sum(answer.exception() is None for answer in answers) == 2


def test_keys_and_origins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SERVE.parent))
    served = Served(api_key="secret", origins=("https://a.org",))
    with pytest.raises(AuthenticationError, match="the API key is wrong"):
        served.client.models.list()

    assert [model.id for model in served.client_with("secret").models.list()]

    assert served.allowed("https://a.org") == "https://a.org"
    assert served.allowed("https://b.org") is None

    served.stop()


def test_ctrl_c_ends_it(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

    words = [sys.executable, SERVE, "--port", str(port), "--train-on-prompt", "0"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log)
        client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none")
        client = client.with_options(max_retries=200)

        assert [model.id for model in client.models.list()] == ["toy"]

        process.send_signal(signal.SIGINT)

        assert process.wait(60) == 0

    assert "Traceback" not in (tmp_path / "log").read_text()


def test_what_cannot_be_loaded_ends_with_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["serve.py", "--store", "nowhere"])
    with pytest.raises(SystemExit, match=r"^serve.py: .* nowhere: no such folder$"):
        runpy.run_path(str(SERVE), run_name="__main__")
