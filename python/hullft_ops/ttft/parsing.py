"""JSON that people write or that comes from elsewhere, checked by pydantic."""

from typing import TypeVar

from pydantic import BaseModel, ValidationError

from hullft_ops.ttft.errors import InputError

Model = TypeVar("Model", bound=BaseModel)


def parse(kind: type[Model], content: bytes, place: str) -> Model:
    """The model that the JSON in ``content`` describes.

    Raises:
        InputError: it does not; the message begins with ``place`` and names the first wrong key.
    """
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        raise InputError(f"{place}: {first_problem(error)}") from error


def first_problem(error: ValidationError) -> str:
    """The first problem that pydantic names, as "key: what is wrong"."""
    problem = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    return f"{key}: {message}" if key else message
