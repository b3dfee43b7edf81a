"""``hullft-ops serve``: complete code in an editor, and answer clients of OpenAI's API."""

import json
import sys
import time
from collections.abc import Callable
from contextlib import closing, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from select import select
from threading import Thread
from time import perf_counter, sleep
from typing import Annotated, Any

import torch
from pydantic import AliasChoices, BaseModel, Field, model_validator
from torch import Tensor
from transformers import TextStreamer

from hullft_ops.cli.adapt import loaded_finetuner
from hullft_ops.cli.options import fields_of
from hullft_ops.ttft.embedding import DEFAULT_EMBEDDER
from hullft_ops.ttft.endings import StopAt
from hullft_ops.ttft.infill import split_at_marks
from hullft_ops.ttft.models.loading import ModelConfig
from hullft_ops.ttft.session import Session
from hullft_ops.ttft.store.corpus import CorpusConfig
from hullft_ops.ttft.store.datastore import Datastore
from hullft_ops.ttft.store.index import folder_datastore
from hullft_ops.ttft.techniques import TTFTConfig
from hullft_ops.ttft.terminal import echo, waiting
from hullft_ops.ttft.tokens import PROBE
from hullft_ops.ttft.validation import parse
from hullft_ops.ttft.windows import heading

# llama.cpp's paths, and OpenAI's with what they call a response.
_PATHS = {
    "/infill": None,
    "/completion": None,
    "/v1/completions": "text_completion",
    "/v1/chat/completions": "chat.completion",
}
# Seconds between two looks at the corpus, at least.
_WATCH_SECONDS = 10


class Chunk(BaseModel):
    """A part of another file that the editor has seen."""

    text: str
    filename: str | None = None


class Asked(BaseModel):
    """A request, by the names of llama.cpp and OpenAI. Other fields change nothing."""

    prompt: str = ""
    """The text before the cursor; of /infill, its last line."""

    messages: list[dict[str, Any]] = []
    """A conversation, in place of a prompt."""

    input_prefix: str = ""
    """The lines before the prompt's."""

    suffix: str = Field("", validation_alias=AliasChoices("suffix", "input_suffix"))
    """The text after the cursor."""

    input_extra: list[Chunk] = []
    """What the editor has seen of other files, the latest last."""

    length: Annotated[int, Field(ge=-1)] = Field(
        128,
        validation_alias=AliasChoices(
            "n_predict", "max_completion_tokens", "max_tokens"
        ),
    )
    """Tokens to write at most; -1 for the default."""

    stop: str | list[str] = []
    """The text ends before the first of these."""

    temperature: Annotated[float, Field(ge=0)] = 0.0
    """0 for the likeliest token."""

    top_k: Annotated[int, Field(ge=0)] = 0
    top_p: Annotated[float, Field(ge=0, le=1)] = 1.0

    t_max_prompt_ms: Annotated[float, Field(ge=0)] = 0.0
    """Milliseconds to read; 0 for no limit."""

    t_max_predict_ms: Annotated[float, Field(ge=0)] = 0.0
    """Milliseconds to write; likewise."""

    stream: bool = False
    """Whether to send the text as it is written."""

    response_fields: list[str] = []
    """What of llama.cpp's response to send, "timings/prompt_n" for one; empty for all."""

    @model_validator(mode="before")
    @classmethod
    def _without_null(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        return {name: value for name, value in fields.items() if value is not None}


class Answer(TextStreamer):
    """A request and its answer, which is sent as it is written if the client wants a stream.

    Attributes:
        text: what is written.

    Args:
        asked: the request.
        handler: sends it.
    """

    def __init__(self, asked: Asked, handler: "Handler") -> None:
        session = handler.server.session
        tokenizer = session.finetuner.tokenizer
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.text = ""
        self._asked = asked
        self._length = 128 if asked.length < 0 else asked.length
        self._handler = handler
        self._session = session
        self._kind = _PATHS[handler.path]
        stops = [asked.stop] if isinstance(asked.stop, str) else asked.stop
        self._stops = [stop for stop in stops if stop]
        self._is_over: Callable[[], bool] = lambda: False
        # With what may begin a stop.
        self._written = ""
        self._count = 0
        self._start = self._first = self._last = perf_counter()

    def write(self, stop_at: str | None) -> None:
        """Have the model write it."""
        asked = self._asked
        before, prompt, suffix = "", asked.input_prefix + asked.prompt, asked.suffix
        if self._kind and not suffix:
            before, prompt, suffix = split_at_marks(prompt)
        chunks = [heading(each.filename) + each.text for each in asked.input_extra]
        is_at_cursor = bool(suffix) or not self._kind or prompt != asked.prompt
        if is_at_cursor:
            self._is_over = self._handler.server.is_asked
            # An editor would show an error.
            if not prompt.strip():
                return
            # At the end of a file, too.
            suffix = suffix or "\n"
        options: dict[str, Any] = {"do_sample": False}
        if asked.temperature:
            sampling = asked.model_dump(include={"temperature", "top_k", "top_p"})
            options = {"do_sample": True, **sampling}
        self._session.answer(
            asked.messages or prompt,
            suffix=suffix,
            chunks=[*chunks, before] if before else chunks,
            seconds=asked.t_max_prompt_ms / 1000 or None,
            is_over=self._is_over,
            max_new_tokens=self._length,
            stop_at=stop_at if is_at_cursor else None,
            stop_strings=self._stops,
            streamer=self,
            stopping_criteria=[self._ends],
            **options,
        )

    def _ends(self, ids: Tensor, scores: Any) -> Tensor:
        """A stopping criterion: another request has come, or time is over.

        The time to write counts from the first token, as in llama.cpp. The first line may take what
        was left of the time to read, too.
        """
        asked = self._asked
        self._last = perf_counter()
        if not self._count:
            self._first = self._last
        self._count += 1
        end = self._first
        if "\n" not in self._written:
            end = max(end, self._start + asked.t_max_prompt_ms / 1000)
        limit = asked.t_max_predict_ms / 1000
        ends = self._is_over() or (limit > 0 and self._last > end + limit)
        return torch.full((len(ids),), ends, device=ids.device)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Take what is written up to the first stop; what may begin one waits."""
        self._written += text
        written, stops = self._written, self._stops
        ends = [written.find(stop) for stop in stops if stop in written]
        if not (ends or stream_end):
            sizes = [n for s in stops for n in range(len(s)) if written.endswith(s[:n])]
            ends = [len(written) - max(sizes, default=0)]
        piece = written[len(self.text) : min(ends, default=len(written))]
        self.text += piece
        if piece and self._asked.stream:
            self._handler.send_event(self.response(piece, ends=False))

    def response(self, text: str, *, ends: bool = True) -> dict[str, Any]:
        """The whole answer, or an event of a stream."""
        asked = self._asked
        read, cached = self._session.n_read, self._session.n_cached
        if self._kind is None:
            whole = {"content": text, "stop": ends, "generation_settings": {}}
            whole |= {"tokens_cached": cached, "truncated": False}
            whole["timings"] = timings = _timings(
                prompt=(read, self._first - self._start),
                predicted=(self._count, self._last - self._first),
            )
            whole |= {f"timings/{name}": value for name, value in timings.items()}
            names = asked.response_fields or [*whole]
            return {name: whole[name] for name in names if name in whole}
        # The end of the prompt is written again, beyond what was asked for.
        count = min(self._count, self._length)
        reason = "length" if count == self._length else "stop"
        choice: dict[str, Any] = {"index": 0, "finish_reason": reason if ends else None}
        is_chat = bool(asked.messages)
        if is_chat:
            message = {"role": "assistant", "content": text}
            choice["delta" if asked.stream else "message"] = message
        else:
            choice["text"] = text
        return {
            "id": f"cmpl-{id(self)}",
            "object": self._kind + ".chunk" * (is_chat and asked.stream),
            "created": int(time.time()),
            "model": "hullft",
            "choices": [choice],
            "usage": {
                "prompt_tokens": read + cached,
                "completion_tokens": count,
                "total_tokens": read + cached + count,
            },
        }


def _timings(**stages: tuple[int, float]) -> dict[str, float]:
    """What llama.cpp tells of the tokens and the seconds of each stage."""
    timings: dict[str, float] = {}
    for stage, (count, seconds) in stages.items():
        timings[f"{stage}_n"] = count
        timings[f"{stage}_ms"] = 1000 * seconds
        timings[f"{stage}_per_second"] = count / max(seconds, 1e-9)
    return timings


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: "Server"
    # Seconds that a client may take to send its request.
    timeout = 5
    _has_begun = False

    def do_GET(self) -> None:
        """The model's name, and whether the server is up."""
        model = {"id": "hullft", "object": "model", "created": 0, "owned_by": "local"}
        pages = {
            "/health": {"status": "ok"},
            "/v1/models": {"object": "list", "data": [model]},
        }
        self._send(pages.get(self.path), 200 if self.path in pages else 404)

    def do_POST(self) -> None:
        """Continue a prompt."""
        if self.path not in _PATHS:
            self._send(None, 404)
            return
        try:
            size = int(self.headers.get("Content-Length", 0))
            asked = parse(Asked, self.rfile.read(size), "request")
            answer = Answer(asked, self)
            # llama.vim says what it has seen, and asks for nothing.
            if asked.length:
                answer.write(self.server.stop_at)
            if asked.stream:
                self.send_event(answer.response(""))
                self.wfile.write(b"data: [DONE]\n\n")
            else:
                self._send(answer.response(answer.text))
        except Exception as error:
            is_wrong = isinstance(error, TypeError | ValueError)
            message = {"message": str(error), "type": type(error).__name__}
            self._send({"error": message}, 400 if is_wrong else 500)

    def send_event(self, content: Any) -> None:
        """Send a part of a stream."""
        if not self._has_begun:
            self._begin("text/event-stream", 200)
        self.wfile.write(b"data: %b\n\n" % _json(content))

    def _send(self, content: Any, status: int = 200) -> None:
        if self._has_begun:
            self.send_event(content)
            return
        self._begin("application/json", status)
        self.wfile.write(_json(content))

    def _begin(self, kind: str, status: int) -> None:
        self._has_begun = True
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.end_headers()

    def log_request(self, *arguments: Any) -> None:
        """An editor sends one for each letter."""


def _json(content: Any) -> bytes:
    # llama.vim wants one line, and no space after the colon.
    return json.dumps(content, separators=(",", ":")).encode()


class Server(HTTPServer):
    """Answers one request at a time; others wait in the socket's queue.

    Args:
        address: host and port.
        session: continues prompts.
        stop_at: where a completion at a cursor ends.
    """

    request_queue_size = 64

    def __init__(
        self, address: tuple[str, int], session: Session, stop_at: str | None
    ) -> None:
        super().__init__(address, Handler)
        self.session, self.stop_at = session, stop_at

    def handle_error(self, *arguments: Any) -> None:
        """A client that is gone is no error."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(*arguments)

    def is_asked(self) -> bool:
        """Whether another request has come."""
        return bool(select([self], [], [], 0)[0])

    def service_actions(self) -> None:
        """Between requests."""
        if not self.is_asked():
            self.session.read_ahead(self.is_asked)


def serve(
    model: Annotated[dict[str, Any], fields_of(ModelConfig)],
    settings: Annotated[dict[str, Any], fields_of(TTFTConfig)],
    files: Annotated[dict[str, Any], fields_of(CorpusConfig)],
    *,
    corpus: str | None = None,
    store: Path | None = None,
    embedder: str = DEFAULT_EMBEDDER,
    host: str = "127.0.0.1",
    port: int = 8012,
    stop_at: StopAt | None = "block",
) -> None:
    """Complete code in an editor, and answer OpenAI's clients, until Ctrl-C.

    By default it searches by windows of lines and takes no steps: --search, --train-on-prompt and
    --n-select change that. It follows a datastore that changes.

    Args:
        model: the language model.
        settings: what precedes an answer.
        files: which files of --corpus to read, and how.
        corpus: your folder of code, which is looked at again every ten seconds. Its datastore stays
            in hullft_datastores.
        store: folder of a datastore in place of --corpus; without either, nothing is retrieved.
        embedder: name or folder of a sentence-transformers model, for a --search that needs one.
        host: address to listen at. Whoever reaches it may ask.
        port: port to listen at; llama.vim's, unless you say otherwise.
        stop_at: where a completion at a cursor ends.
    """
    settings = {"search": "windows", "train_on_prompt": 0} | settings
    if store is None and corpus is None:
        settings = {"context": 0, "ngrams": 0} | settings
    finetuner = loaded_finetuner(
        ModelConfig(**model),
        TTFTConfig(**settings),
        embedder,
        store=store,
        corpus=corpus,
        files=files,
    )
    with (
        waiting("reading the datastore"),
        closing(Session(finetuner)) as session,
        Server((host, port), session, stop_at) as server,
    ):
        if store or corpus:

            def newest() -> Datastore:
                if corpus is None:
                    return Datastore.open(str(store))
                return folder_datastore(corpus, finetuner.embedder, **files)

            Thread(target=_follow, args=(session, newest), daemon=True).start()
        echo(f"listening at http://{host}:{server.server_port}, until Ctrl-C")
        with suppress(KeyboardInterrupt):
            server.serve_forever()


def _follow(session: Session, newest: Callable[[], Datastore]) -> None:
    """Let a session search the newest version of its datastore, from now on."""
    seconds = 0.0
    while True:
        # To look takes at most a tenth of the time.
        sleep(max(_WATCH_SECONDS, 10 * seconds))
        start = perf_counter()
        try:
            store, finetuner = newest(), session.finetuner
            if finetuner.store is None or store.identity != finetuner.store.identity:
                finetuner = finetuner.with_store(store)
                # The first search makes what the next ones need.
                finetuner.retrieve(PROBE)
                session.finetuner = finetuner
        except (OSError, ValueError) as error:
            echo(f"hullft-ops serve: {error}", err=True)
        seconds = perf_counter() - start
