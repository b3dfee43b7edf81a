"""Options and other inputs, checked, and the error of one sentence that refuses them."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, wraps
from reprlib import repr as shortened
from typing import Any, TypeVar, dataclass_transform

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

Kind = TypeVar("Kind")

# Making one takes longer than to read a line.
_adapter = cache(TypeAdapter)

_STRICT = ConfigDict(
    allow_inf_nan=False,
    arbitrary_types_allowed=True,
    extra="forbid",
    strict=True,
    use_attribute_docstrings=True,
)


class InputError(ValueError):
    """An input cannot be used: an option, a file, a model. The message names it and says why."""


def first_line(error: Exception) -> str:
    """The first line of an error's message, after its type if the message says little, as a
    KeyError's does."""
    name = type(error).__name__
    message = str(error).strip()
    if not message:
        return name
    line = message.splitlines()[0]
    return line if isinstance(error, OSError | ValueError) else f"{name}: {line}"


@contextmanager
def input_errors(subject: str) -> Iterator[None]:
    """Turn the libraries' exceptions into an `InputError` of one line, which begins with
    ``subject``."""
    try:
        yield
    except (InputError, ImportError, torch.OutOfMemoryError):
        raise
    # The libraries do not document what they raise for foreign files.
    except Exception as error:
        reason = first_line(error)
        # The libraries advise passing that argument.
        if "trust_remote_code" in str(error):
            reason = "it needs code that ships with it, which is not run"
        raise InputError(f"{subject}: {reason}") from error


@dataclass_transform(frozen_default=True, kw_only_default=True)
def options_class(kind: type[Kind]) -> type[Kind]:
    """Make a class one of options: a frozen dataclass, whose fields have types, bounds and docs.

    Its constructor raises an InputError of one sentence for a wrong value or an unknown option.
    """
    checked: Any = dataclass(kind, config=_STRICT, frozen=True, kw_only=True)
    check = checked.__init__

    @wraps(check)
    def construct(self: Any, **values: Any) -> None:
        names = [field.name for field in dataclasses.fields(checked)]
        for name in values.keys() - names:
            raise InputError(
                f"{kind.__name__}: unknown option {name!r}, known are {', '.join(names)}"
            )
        try:
            check(self, **values)
        except ValidationError as error:
            raise InputError(f"{kind.__name__}: {first_problem(error)}") from error

    checked.__init__ = construct
    return checked  # type: ignore[no-any-return]


def parse(kind: type[Kind], content: bytes, place: str) -> Kind:
    """The model or the options that the JSON in ``content`` describes.

    Raises:
        InputError: it does not; the message begins with ``place`` and names the first wrong key.
    """
    try:
        return _adapter(kind).validate_json(content)  # type: ignore[arg-type, no-any-return]
    except ValidationError as error:
        raise InputError(f"{place}: {first_problem(error)}") from error


def first_problem(error: ValidationError) -> str:
    """The first problem that pydantic names, as "key must be so, got this" or "key: problem"."""
    problem = error.errors(include_url=False)[0]
    # pydantic also names the member of a union, in brackets.
    key = ".".join(str(part) for part in problem["loc"] if "[" not in str(part))
    message = problem["msg"].removeprefix("Value error, ")
    wanted = message.removeprefix("Input should ")
    if wanted != message:
        return f"{key} must {wanted}, got {shortened(problem['input'])}".lstrip()
    return f"{key}: {message}" if key else message
