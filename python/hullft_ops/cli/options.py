"""Options of the command line from the classes that define them."""

from dataclasses import fields
from typing import Annotated, Any, TypedDict, get_type_hints

import tyro

from hullft_ops.ttft.search import SearchName
from hullft_ops.ttft.techniques.passage_steps import MethodName

# Fields that only Python can give.
_IN_PYTHON = ("techniques",)


def fields_of(
    kind: Any, *, several: bool = False, without: tuple[str, ...] = ()
) -> Any:
    """For `Annotated` and a dictionary: an option for each field of a class of options.

    The dictionary holds what the command line names. The class checks it later, when the command
    runs, whose errors are one line.

    Args:
        kind: the class.
        several: whether an option takes any number of values.
        without: fields that are no options.
    """
    # A method and a search of one's own are for Python alone.
    hints = get_type_hints(kind) | {"method": MethodName, "search": SearchName | None}
    options: dict[str, Any] = {}
    for field in fields(kind):
        if field.name in (*without, *_IN_PYTHON):
            continue
        hint = hints[field.name]
        described = tyro.conf.arg(
            help=_description(kind, field.name),
            help_behavior_hint="" if several else f"(default: {field.default})",
        )
        options[field.name] = Annotated[
            tuple[hint, ...] if several else hint, described  # type: ignore[valid-type]
        ]
    names = TypedDict(kind.__name__, options, total=False)  # type: ignore[misc]
    return tyro.conf.arg(constructor=names)


def _description(kind: Any, name: str) -> str | None:
    """The docstring of a field, which pydantic reads for the fields of a class's own body."""
    for base in kind.__mro__:
        field = getattr(base, "__pydantic_fields__", {}).get(name)
        if field is not None and field.description is not None:
            return " ".join(field.description.split())
    return None
