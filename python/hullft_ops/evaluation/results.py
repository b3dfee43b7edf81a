"""The rows of an evaluation."""

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, NonNegativeFloat, NonNegativeInt

from hullft_ops.ttft.records import read_records

_STRICT = ConfigDict(
    allow_inf_nan=False, frozen=True, strict=True, use_attribute_docstrings=True
)


class Score(BaseModel):
    """A score of one prompt."""

    model_config = _STRICT

    before: NonNegativeFloat
    """Without adaptation."""
    after: NonNegativeFloat
    """With adaptation."""


class Row(BaseModel):
    """One configuration on one prompt. Seconds are wall-clock."""

    model_config = _STRICT

    run: str
    """The identity of model, tokenizer, datastore, embedder and seed."""
    prompt: str
    """The prompt's id, which its text decides."""
    settings: dict[str, Any]
    """The options that matter."""
    domain: str
    scores: dict[str, Score] = {}
    """By name; empty if there is an error."""
    seconds: dict[str, NonNegativeFloat] = {}
    """By stage; empty if there is an error."""
    passes: NonNegativeInt = 0
    """Forward-backward passes."""
    error: str | None = None
    """Why there is no result, for example a loss that is not finite."""
    versions: dict[str, str | None]
    """Of the packages that decide the numbers, and the device of the model."""
    threads: int
    """Threads of torch."""

    @property
    def key(self) -> tuple[str, str]:
        return self.prompt, self.config

    @cached_property
    def config(self) -> str:
        """The key of the settings."""
        return key_of(self.settings)

    @property
    def seconds_total(self) -> float:
        """From the prompt to the adapted model."""
        return sum(self.seconds.values())


def key_of(settings: Mapping[str, Any]) -> str:
    """JSON of some settings, the same whatever their order."""
    return json.dumps(settings, sort_keys=True)


def read_rows(path: Path) -> list[Row]:
    """The rows of a results file; see `hullft_ops.ttft.records.read_records`."""
    return read_records(path, Row)
