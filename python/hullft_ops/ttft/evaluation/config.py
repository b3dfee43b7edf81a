"""What to evaluate: a JSON file of inputs and settings that a person or `tune` wrote."""

import inspect
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from hullft_ops.ttft.errors import InputError, first_line
from hullft_ops.ttft.experts.folder import Experts
from hullft_ops.ttft.finetuner import TestTimeFinetuner
from hullft_ops.ttft.retrieval.methods import Random, Sift
from hullft_ops.ttft.store.datastore import Datastore
from hullft_ops.ttft.store.embedding import DEFAULT_EMBEDDER
from hullft_ops.ttft.tiny import default_lr

Settings = dict[str, Any]

_INPUTS = ("model", "tokenizer", "store", "embedder", "experts", "on_step")
_DEFAULTS = {
    name: parameter.default
    for name, parameter in inspect.signature(TestTimeFinetuner).parameters.items()
    if name not in _INPUTS
}
# SIFT's additional settings. "reuse" is None, "global" or "consecutive", see `reuse_runs`.
_SIFT_DEFAULTS = {"noise": Sift.noise, "reuse": None}
# Only settings that say so merge experts; "experts" is their digest.
_DEFAULTS |= _SIFT_DEFAULTS | {"n_experts": 0, "experts": None}
# A configuration's name always states these; it states other settings if they are not the default.
_NAMED = ("method", "n_select", "refresh", "lr")
# Settings that matter only if experts are merged, and settings that matter without steps.
_OF_EXPERTS = ("experts", "expert_scale", "expert_temperature")
_STEPLESS = ("n_select", "context", "max_length", "n_experts", *_OF_EXPERTS)
# These take one step on each text, so there is no gradient to reuse.
_ONE_STEP_A_TEXT = ("knn", "random")
NO_STEPS = "no steps"
# The family of settings without steps that merge experts.
MERGED = "merged"
_SHIPPED = Path(__file__).with_name("experiments")
# The types of a file's values; all others are strings, and some of these name files.
_KINDS: dict[str, type] = {"limit": int, "seed": int, "allow_missing_weights": bool}
_PATHS = ("store", "experts", "prompts", "corpus")


class ConfigError(InputError):
    """A configuration that cannot be run; the message names the file and the key."""


@contextmanager
def refusing(what: str, *more: type[Exception]) -> Iterator[None]:
    """Turn an OSError, a ValueError or one of ``more`` into a `ConfigError` about ``what``."""
    expected: tuple[type[Exception], ...] = (OSError, ValueError, *more)
    try:
        yield
    except expected as error:
        # Do not name a file twice.
        named = isinstance(error, OSError) and what.endswith(f" {error.filename}")
        said = getattr(error, "strerror", None) if named else first_line(error)
        raise ConfigError(f"{what}: {said}") from error


@dataclass(frozen=True)
class Config:
    """What `evaluate`, `tune` and `adapt` run on.

    Attributes:
        model, embedder, allow_missing_weights: as `load_model` and `load_embedder` take them.
        store: directory of a datastore.
        experts: directory of experts of the model and datastore, for settings with "n_experts".
        prompts: JSONL file of held-out prompts, each with a "text" and, if you like, a "domain".
        corpus: JSONL file to split into a datastore and prompts, if ``store`` and ``prompts`` are
            None. If it is None too, the sources of installed packages are split.
        limit: how many of the prompts to use, drawn evenly over the domains; None for all.
        seed: chooses the prompts, and drives everything else that is random.
        settings: the grid: dictionaries of `TestTimeFinetuner`'s keyword arguments. A list stands
            for each of its items. The method "sift" also takes "noise", and "reuse" for steps in
            the order of its picks.
    """

    model: str | None = None
    embedder: str = DEFAULT_EMBEDDER
    store: Path | None = None
    experts: Path | None = None
    prompts: Path | None = None
    corpus: Path | None = None
    limit: int | None = None
    seed: int = 0
    allow_missing_weights: bool = False
    settings: tuple[Settings, ...] = ()
    description: str = ""

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"limit must be at least 1, got {self.limit}")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed must be in 0..2^63 - 1, got {self.seed}")
        # Only to refuse a bad grid: the model, and with it the learning rate, may still change.
        expand_grid(self.settings, self.model)

    @cached_property
    def configurations(self) -> tuple[Settings, ...]:
        """Every configuration of the grid, see `expand_grid`, with the digest of its experts."""
        if self.experts is not None and not any(
            "n_experts" in axes for axes in self.settings
        ):
            raise ConfigError(
                f"experts is {self.experts}, but no settings have n_experts, the number "
                "of experts to merge"
            )
        experts = open_experts(self.experts)
        named = {} if experts is None else {"experts": experts.digest}
        expanded = expand_grid(self.settings, self.model)
        return tuple(s | named if s.get("n_experts") else s for s in expanded)

    def with_changes(self, **changes: Any) -> "Config":
        """The same configuration with these changes. A change to None is ignored."""
        return replace(self, **{k: v for k, v in changes.items() if v is not None})


def read_config(source: str | Path) -> Config:
    """The configuration in a JSON file, or the one with that name that ships with the package.

    The keys are those of `Config`; ``settings`` is one dictionary or a list of them. Keys that
    begin with "_" are ignored, and so is "tuned", which says where the settings come from. A null
    stands for the default. A `ConfigError` says what is wrong with the file.
    """
    path, shipped = Path(source), _SHIPPED / f"{source}.json"
    if shipped.is_file() and not path.exists():
        path = shipped
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        said = f"{error.strerror}; {', '.join(shipped_configs())} ship with the package"
        raise ConfigError(f"config {source}: {said}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"config {source}: not JSON: {error}") from error
    with refusing(f"config {source}"):
        return _from_json(content)


def open_experts(path: Path | None) -> Experts | None:
    """The experts at ``path``; a `ConfigError` says why they cannot be opened."""
    with refusing(f"experts {path}"):
        return None if path is None else Experts.open(path)


def open_store(path: Path) -> Datastore:
    """The datastore at ``path``; a `ConfigError` says why it cannot be opened."""
    with refusing(f"store {path}"):
        return Datastore.open(path)


def shipped_configs() -> list[str]:
    """Names of the configurations that ship with the package."""
    return sorted(path.stem for path in _SHIPPED.glob("*.json"))


def expand_grid(
    grid: Iterable[Mapping[str, Any]], model: str | None
) -> tuple[Settings, ...]:
    """Every configuration of a grid, see `Config`, once, with method, steps, refresh and rate.

    ``model`` decides the rate if the grid sets none. A `ConfigError` says which key is wrong.
    """
    expanded: dict[str, Settings] = {}
    for axes in grid:
        _check_keys(axes, _DEFAULTS, "settings: ")
        empty = [name for name, value in axes.items() if value == []]
        if empty:
            raise ConfigError(f"settings: {empty[0]} must not be an empty list")
        lists = [
            value if isinstance(value, list) else [value] for value in axes.values()
        ]
        for values in product(*lists):
            settings = _filled(dict(zip(axes, values, strict=True)), model)
            expanded.setdefault(config_id(settings), settings)
    return tuple(expanded.values())


def config_id(settings: Mapping[str, Any]) -> str:
    """A name for filled-in settings. It states every value that is not a default, exactly."""
    said = [
        f"{key}={_shown(settings[key])}"
        for key in sorted(settings)
        # A results file may have a key that this version does not know.
        if key not in _NAMED
        and not (key in _DEFAULTS and settings[key] == _DEFAULTS[key])
    ]
    steps, rate = (
        f"n={settings['n_select']} refresh={settings['refresh']}",
        _shown(settings["lr"]),
    )
    named = (
        NO_STEPS
        if settings["n_select"] == 0
        else f"{settings['method']} {steps} lr={rate}"
    )
    return " ".join([named, *said])


def family(settings: Mapping[str, Any]) -> str:
    """What a report compares: the method, merged experts, how many texts are in the context."""
    merged = bool(settings.get("n_experts"))
    if settings["n_select"] == 0:
        return MERGED if merged else NO_STEPS
    context = settings.get("context", 0)
    parts = (
        [str(settings["method"])]
        + [MERGED] * merged
        + [f"context={context}"] * bool(context)
    )
    return " ".join(parts)


def finetuner_options(
    settings: Settings, seed: int, experts: Experts | None = None
) -> dict[str, Any]:
    """`TestTimeFinetuner`'s keyword arguments, without "reuse". ValueError if experts differ."""
    options = {k: v for k, v in settings.items() if k not in _SIFT_DEFAULTS}
    named = options.pop("experts", None)
    if settings.get("n_experts"):
        if experts is None:
            raise ValueError(
                f"n_experts is {settings['n_experts']}, but experts is not given"
            )
        if named not in (None, experts.digest):
            raise ValueError(
                f"the settings were made with experts {named}, got experts {experts.digest}"
            )
        options["experts"] = experts
    if settings["method"] == "sift":
        options["method"] = Sift(settings.get("noise", Sift.noise))
    elif settings["method"] == "random":
        options["method"] = Random(seed)
    return options


def _filled(settings: Settings, model: str | None) -> Settings:
    filled = (
        {name: _DEFAULTS[name] for name in _NAMED}
        | {"lr": default_lr(model)}
        | settings
    )
    if filled["method"] in _ONE_STEP_A_TEXT:
        filled["refresh"] = 1
    for name in _SIFT_DEFAULTS.keys() & filled.keys():
        if filled["method"] != "sift":
            raise ConfigError(
                f"settings: {name} is for method sift, got {filled['method']!r}"
            )
    if not filled.get("n_experts"):
        filled = {k: v for k, v in filled.items() if k not in _OF_EXPERTS}
    if filled["n_select"] == 0:
        stepless = {name: filled[name] for name in _STEPLESS if name in filled}
        return {
            "method": "knn",
            "n_select": 0,
            "refresh": 1,
            "lr": default_lr(model),
        } | stepless
    return filled


def _from_json(content: Any) -> Config:
    if not isinstance(content, dict):
        raise ConfigError(f"must be an object, got {type(content).__name__}")
    given = {k: v for k, v in content.items() if not k.startswith("_") and k != "tuned"}
    _check_keys(given, [field.name for field in fields(Config)], "")
    known = {k: v for k, v in given.items() if v is not None}
    grid = known.pop("settings", [])
    for name, value in known.items():
        if type(value) is not (kind := _KINDS.get(name, str)):
            wanted = {int: "an integer", bool: "true or false"}.get(kind, "a string")
            raise ConfigError(f"{name} must be {wanted}, got {value!r}")
    known |= {name: Path(known[name]) for name in _PATHS if name in known}
    grid = grid if isinstance(grid, list) else [grid]
    if not all(isinstance(axes, dict) for axes in grid):
        raise ConfigError(f"settings must be an object or a list of them, got {grid!r}")
    return Config(**known, settings=tuple(grid))


def _check_keys(given: Iterable[str], known: Iterable[str], prefix: str) -> None:
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ConfigError(
            f"{prefix}unknown key {unknown[0]!r}, known are {', '.join(known)}"
        )


def _shown(value: object) -> str:
    # A rate of 1 in a file must equal the rate of 1.0 on the command line.
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)
