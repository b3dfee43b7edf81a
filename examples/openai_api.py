"""Requests and responses of OpenAI's API, and of llama.cpp's /infill, for serve.py."""

import json
import logging
import time
from dataclasses import dataclass, field
from typing import Annotated, Any
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hullft_ops.ttft import Question, question_of

log = logging.getLogger(__name__)

# The values of a parameter that ask for nothing beyond what this server does.
NEUTRAL: dict[str, list[Any]] = {
    "audio": [],
    "best_of": [1],
    "echo": [False],
    "frequency_penalty": [0],
    "function_call": ["none", "auto"],
    "functions": [[]],
    "logit_bias": [{}],
    "logprobs": [False],
    "modalities": [["text"]],
    "n": [1],
    "prediction": [],
    "presence_penalty": [0],
    "response_format": [{"type": "text"}],
    "tool_choice": ["none", "auto"],
    "tools": [[]],
    "top_logprobs": [0],
    "web_search_options": [],
}
# Parameters that change nothing here.
IGNORED = {
    "metadata",
    "parallel_tool_calls",
    "prompt_cache_key",
    "reasoning_effort",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
    "verbosity",
}


class RequestError(ValueError):
    """A request that cannot be answered. The message says why."""


class Part(BaseModel):
    """A part of a message's content; only text can be read."""

    type: str
    text: str = ""


class Message(BaseModel):
    """A message of a conversation."""

    model_config = ConfigDict(extra="allow")

    role: str
    content: str | list[Part] | None = None

    def read(self) -> dict[str, Any]:
        """The message as chat templates take it."""
        content = self.content or ""
        if isinstance(content, list):
            for part in content:
                if part.type != "text":
                    raise RequestError(f"a message has a part of type {part.type!r}")
            content = "".join(part.text for part in content)
        return {**(self.model_extra or {}), "role": self.role, "content": content}


class StreamOptions(BaseModel):
    """What a stream tells beside the text."""

    include_usage: bool = False


class Sampled(BaseModel):
    """The parameters that all requests share."""

    model_config = ConfigDict(strict=True, extra="allow")

    model: str | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None


class Completion(Sampled):
    """A body of /v1/completions."""

    prompt: str | list[str]
    suffix: str | None = None
    max_tokens: Annotated[int, Field(ge=0)] | None = None


class Chat(Sampled):
    """A body of /v1/chat/completions."""

    messages: list[Message]
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=0)] | None = None


class Infill(Sampled):
    """A body of llama.cpp's /infill; an editor sends what is written since in ``prompt``."""

    input_prefix: str = ""
    input_suffix: str = ""
    prompt: str = ""
    n_predict: Annotated[int, Field(ge=-1)] = 128
    n_indent: Annotated[int, Field(ge=0)] = 0
    top_k: Annotated[int, Field(ge=0)] = 0
    t_max_predict_ms: Annotated[float, Field(ge=0)] = 0


@dataclass
class Task:
    """A request, understood.

    Attributes:
        prompts: the questions, one for each choice.
        length: the largest number of tokens of an answer.
        options: how to sample, for `generate`.
        kind: what to call the response.
    """

    prompts: list[Question]
    length: int
    options: dict[str, Any]
    kind: str
    seed: int | None = None
    stops: list[str] = field(default_factory=list)
    is_stream: bool = False
    has_usage: bool = False
    id: str = field(default_factory=lambda: f"cmpl-{uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))


def understood(path: str, body: bytes, tokenizer: Any) -> Task:
    """The task of a request to this path; RequestError names what is wrong with it."""
    kinds = {"/v1/completions": Completion, "/v1/chat/completions": Chat}
    kind: Any = kinds.get(path, Infill)
    try:
        asked = kind.model_validate_json(body)
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(str(part) for part in problem["loc"])
        raise RequestError(f"{place}: {problem['msg']}".removeprefix(": ")) from error
    options = sampling(asked.temperature, asked.top_p)
    if kind is Infill:
        options = infill_options(asked)
        length = asked.n_predict if asked.n_predict >= 0 else 128
        texts, suffix = [asked.input_prefix + asked.prompt], asked.input_suffix
        name = "infill"
    else:
        check_others(asked.model_extra or {})
        if kind is Chat:
            texts, suffix = [[message.read() for message in asked.messages]], ""
            limits = asked.max_completion_tokens, asked.max_tokens, 256
            name = "chat.completion"
        else:
            texts = asked.prompt if isinstance(asked.prompt, list) else [asked.prompt]
            suffix = asked.suffix or ""
            limits, name = (asked.max_tokens, 16), "text_completion"
        length = next(limit for limit in limits if limit is not None)
    try:
        prompts = [question_of(tokenizer, text, suffix=suffix) for text in texts]
    except (TypeError, ValueError) as error:
        raise RequestError(str(error)) from error
    if not all(prompt.text.strip() for prompt in prompts):
        raise RequestError("prompt: must have text")
    stops = [asked.stop] if isinstance(asked.stop, str) else asked.stop or []
    return Task(
        prompts=prompts,
        length=length,
        options=options,
        kind=name,
        seed=asked.seed,
        stops=[stop for stop in stops if stop],
        is_stream=bool(asked.stream),
        # An infill has no usage.
        has_usage=kind is not Infill
        and bool(asked.stream_options and asked.stream_options.include_usage),
    )


def check_others(others: dict[str, Any]) -> None:
    """Refuse what asks for more than this server does; warn of what it does not know."""
    for name, value in others.items():
        if name in NEUTRAL:
            if value is not None and value not in NEUTRAL[name]:
                values = " or ".join(map(json.dumps, [*NEUTRAL[name], None]))
                raise RequestError(f"{name} must be {values}: this server has no other")
        elif name not in IGNORED:
            log.warning("a request has a parameter %s, which is ignored", ascii(name))


def sampling(temperature: float | None, top_p: float | None) -> dict[str, Any]:
    """The options of `generate`; greedy where only the likeliest token is left."""
    temperature = 1.0 if temperature is None else temperature
    if temperature < 1e-3 or top_p == 0:
        return {"do_sample": False}
    top_p = 1.0 if top_p is None else top_p
    return {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}


def infill_options(asked: Infill) -> dict[str, Any]:
    """As llama.cpp, but greedy without a temperature, where an editor wants the likeliest text."""
    options = sampling(asked.temperature or 0.0, asked.top_p)
    if options["do_sample"]:
        options["top_k"] = asked.top_k
    if asked.n_indent:
        # The lines that are indented as far as the cursor's.
        options["stop_at"] = "block"
    if asked.t_max_predict_ms:
        options["max_time"] = asked.t_max_predict_ms / 1000
    return options


def error_body(reason: object, kind: str = "invalid_request_error") -> dict[str, Any]:
    """An error as OpenAI's clients read it."""
    # A lone half of a character, which a message may quote, cannot be sent.
    message = str(reason).encode(errors="backslashreplace").decode()
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


def response(
    task: Task, model: str, choices: list[dict[str, Any]], usage: Any
) -> dict[str, Any]:
    """A whole response, or an event of a stream."""
    if task.kind == "infill":
        text = "".join(choice["text"] for choice in choices)
        return {
            "content": text,
            "model": model,
            "stop": choices[-1]["reason"] is not None,
            "passages": choices[-1].get("passages", []),
        }
    is_chunk = task.is_stream and task.kind == "chat.completion"
    head = {
        "id": task.id,
        "object": task.kind + ".chunk" * is_chunk,
        "created": task.created,
        "model": model,
    }
    body = {**head, "choices": [choice_of(task, **choice) for choice in choices]}
    return body if task.is_stream and not task.has_usage else body | {"usage": usage}


def choice_of(
    task: Task, index: int, text: str, reason: str | None, **others: Any
) -> dict[str, Any]:
    """One answer, or a part of one."""
    choice = {"index": index, "finish_reason": reason, "logprobs": None} | others
    if task.kind != "chat.completion":
        return choice | {"text": text}
    message = {"role": "assistant", "content": text}
    return choice | {"delta" if task.is_stream else "message": message}
