"""What to evaluate: models, texts, and a grid of settings."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveInt

from hullft_ops._terminal import listed
from hullft_ops.ttft.config import (
    COMPARED,
    NAMED,
    ModelConfig,
    TTFTConfig,
    default_lr,
    fields_marked,
    matters,
)
from hullft_ops.ttft.embedding import DEFAULT_EMBEDDER
from hullft_ops.ttft.errors import InputError
from hullft_ops.ttft.store.corpus import CorpusConfig
from hullft_ops.ttft.validation import options_class, parse

NO_STEPS = "no steps"
# Without any of these a model stays as it is.
_ADAPTING = ("n_select", "train_on_prompt", "context", "ngrams", "adapter")
_SHIPPED = Path(__file__).with_name("experiments")


def _listed(settings: Any) -> Any:
    return [settings] if isinstance(settings, dict) else settings


@options_class
class Experiment(ModelConfig, CorpusConfig):
    """What ``hullft-ops evaluate`` measures, and the JSON file that its ``--config`` reads."""

    embedder: str = DEFAULT_EMBEDDER
    """Name or folder of a sentence-transformers model."""

    store: Path | None = None
    """Folder of a datastore; goes with prompts."""

    prompts: Path | None = None
    """JSONL file of held-out prompts: each has a "text" and, if you like, the "continuation" to
    rank by, and a "domain"."""

    corpus: str | None = None
    """Without store: what to split into a datastore and held-out prompts, anything that hullft-ops
    index reads. Whole files, or records, are held out. None for the sources of installed packages.
    """

    limit: PositiveInt | None = None
    """How many prompts to take, evenly from their domains; None for all in the file of prompts, or
    for 10 of a corpus."""

    seed: NonNegativeInt = 0
    """Chooses the prompts."""

    settings: Annotated[
        list[dict[str, Any]], Field(min_length=1), BeforeValidator(_listed)
    ] = Field(default_factory=lambda: [{"method": ["knn", "hullft"], "n_select": 8}])
    """The grid: fields of `TTFTConfig` with a value or a list of values, or a list of such. Steps
    on the prompt, which is scored, are taken only if it says so."""

    description: str = ""
    """What the experiment is for."""

    def configs(self) -> list[TTFTConfig]:
        """Every configuration of the grid; see `expand`."""
        # Prompts are scored.
        defaults = {"lr": default_lr(self.model), "train_on_prompt": 0}
        return expand([defaults | grid for grid in self.settings])


def read_experiment(source: str | Path) -> Experiment:
    """The experiment in a JSON file, or the one of that name that ships with the package.

    Raises:
        InputError: it cannot be read, or is wrong; the message names the file and the key.
    """
    path, shipped = Path(source), _SHIPPED / f"{source}.json"
    if shipped.is_file() and not path.exists():
        path = shipped
    try:
        content = path.read_bytes()
    except OSError as error:
        names = ", ".join(sorted(path.stem for path in _SHIPPED.glob("*.json")))
        raise InputError(
            f"config {source}: {error.strerror}; {names} ship with the package"
        ) from error
    experiment = parse(Experiment, content, f"config {source}")
    try:
        experiment.configs()
    except InputError as error:
        raise InputError(f"config {source}: {error}") from error
    return experiment


def expand(settings: Sequence[Mapping[str, Any]]) -> list[TTFTConfig]:
    """Every configuration of some grids, once. Lists multiply out.

    A setting that does not matter takes its default, as the marks in `TTFTConfig` say; ``refresh``
    is 1 for knn. A configuration that adapts nothing is left out: every row has the bits
    per byte without adaptation.

    Raises:
        InputError: a setting is unknown or wrong, or nothing is left to measure.
    """
    configs: dict[str, TTFTConfig] = {}
    for number, grid in enumerate(settings):
        try:
            for values in _combinations(grid):
                config = TTFTConfig(**_without_idle(values))
                if any(getattr(config, name) for name in _ADAPTING):
                    configs.setdefault(label(config), config)
        except InputError as error:
            raise InputError(f"settings[{number}]: {error}") from error
    if not configs:
        raise InputError(
            f"settings: nothing to measure where {listed(_ADAPTING)} are all 0"
        )
    return list(configs.values())


def _combinations(grid: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    axes = {}
    for name, value in grid.items():
        axes[name] = value if isinstance(value, list | tuple) else [value]
        if not axes[name]:
            raise InputError(f"{name} must not be an empty list")
    for values in product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def _without_idle(values: dict[str, Any]) -> dict[str, Any]:
    """The settings that matter, and those that are unknown, which an error names."""
    known = {field.name for field in fields(TTFTConfig)}
    kept = {
        name: value
        for name, value in values.items()
        if name not in known or matters(name, values)
    }
    if kept.get("method") == "knn":
        kept["refresh"] = 1
    return kept


def label(config: TTFTConfig) -> str:
    """The configuration's name: "hullft n=8 refresh=2 lr=5e-05 context=5 context_following=1".

    It states method, steps, refresh and learning rate, what is read beside the selected passages,
    and any other option that is not the default.
    """
    values = settings_of(config)
    named, compared = fields_marked(NAMED), fields_marked(COMPARED)
    parts = []
    for name in [*named, *sorted(values.keys() - set(named))]:
        value = values[name]
        if not matters(name, values):
            continue
        if name == "method":
            parts.append(str(value))
        elif name == "n_select":
            parts.append(f"n={value}" if _takes_steps(values) else NO_STEPS)
        elif value or name not in compared:
            parts.append(f"{name}={_shown(value)}")
    return " ".join(parts)


def compared_settings(settings: Mapping[str, Any]) -> str:
    """What a report compares: the method, and what precedes the prompt."""
    parts = [] if _takes_steps(settings) else [NO_STEPS]
    for name in fields_marked(COMPARED):
        value = settings.get(name)
        if value and matters(name, settings):
            parts.append(value if name == "method" else f"{name}={value}")
    return " ".join(parts)


def _takes_steps(settings: Mapping[str, Any]) -> bool:
    return any(settings.get(name) for name in ("n_select", "train_on_prompt"))


def settings_of(config: TTFTConfig) -> dict[str, Any]:
    """The fields that a row states: together they are the configuration."""
    stated = {*fields_marked(NAMED), *fields_marked(COMPARED)}
    values = {}
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name in stated or value != field.default:
            values[field.name] = value
    return values


def _shown(value: object) -> str:
    # A rate of 1 in a file is the rate of 1.0 on the command line.
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)
