"""The rows of an evaluation, and the file that holds them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    field_validator,
)

from hullft_ops.ttft.records import (
    STRICT,
    Record,
    ResultsFile,
    open_records,
    read_records,
)

# The stages of an adaptation whose seconds a row holds.
STAGES = ("embed", "search", "select", "finetune", "prefill")
# Larger ones are no exact float64.
Count = Annotated[int, Field(ge=0, lt=2**53)]


class Score(BaseModel):
    """A score of one prompt; less is better."""

    model_config = STRICT

    before: PositiveFloat
    """Without adaptation."""
    after: NonNegativeFloat
    """With adaptation."""


class Row(Record):
    """One configuration on one prompt. Seconds are wall-clock."""

    decided_by = "model, tokenizer, datastore, embedder or seed"

    prompt: str
    """The prompt's id, which its text decides."""
    config: str
    """The configuration's label."""
    settings: dict[str, Any]
    """What the label states."""
    domain: str
    seed: int
    scores: dict[str, Score]
    """By name; empty if there is an error."""
    seconds: dict[str, NonNegativeFloat]
    """By stage; empty if there is an error."""
    passes: Count
    """Forward-backward passes."""
    support_size: Count
    """Different passages."""
    error: str | None
    """Why there is no result, for example a loss that is not finite."""
    versions: dict[str, str | None]
    """Of the packages that decide the numbers, and the device of the model."""
    threads: int
    """Threads of torch."""

    @field_validator("settings")
    @classmethod
    def _named(cls, settings: dict[str, Any]) -> dict[str, Any]:
        for name, kind in (("method", str), ("n_select", int)):
            if not isinstance(settings.get(name), kind):
                raise ValueError(f"must have {name!r}, got {settings}")
        return settings

    @property
    def key(self) -> tuple[str, str]:
        return self.prompt, self.config

    @property
    def title(self) -> str:
        return f"{self.config} on {self.prompt}"

    @property
    def seconds_total(self) -> float:
        """From the prompt to the adapted model."""
        return sum(self.seconds.values())


@contextmanager
def open_results(path: Path, run: str) -> Iterator[ResultsFile[Row]]:
    """The rows in a file, to add to; see `open_records`."""
    with open_records(path, run, Row) as results:
        yield results


def read_rows(path: Path) -> list[Row]:
    """The rows in a file; see `read_records`."""
    return read_records(path, Row)
