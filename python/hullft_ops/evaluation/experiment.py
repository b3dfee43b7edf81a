"""What to evaluate: models, texts, and a grid of settings."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, NonNegativeInt, PositiveInt

from hullft_ops.evaluation.results import key_of
from hullft_ops.ttft.embedding import DEFAULT_EMBEDDER
from hullft_ops.ttft.models.loading import ModelConfig
from hullft_ops.ttft.store.corpus import CorpusConfig
from hullft_ops.ttft.techniques import TTFTConfig
from hullft_ops.ttft.validation import InputError, options_class, parse


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
    index reads. Whole files, or records, are held out. None for sources of torch."""

    limit: PositiveInt | None = None
    """How many prompts to take, evenly from their domains; None for all in the file of prompts, or
    for 10 of a corpus."""

    seed: NonNegativeInt = 0
    """Chooses the prompts."""

    settings: Annotated[list[dict[str, Any]], Field(min_length=1)] = Field(
        default_factory=lambda: [{"method": ["knn", "hullft"], "n_select": 8}]
    )
    """The grid: fields of `TTFTConfig` with a value or a list of values. Steps
    on the prompt, which is scored, are taken only if it says so."""

    score: str | None = None
    """What to compare by: continuation or prompt, or line or similarity of what is written; None
    for the first that every row has."""

    description: str = ""
    """What the experiment is for."""

    def configs(self) -> list[TTFTConfig]:
        """Every configuration of the grid; see `expand`."""
        # Prompts are scored.
        return expand([{"train_on_prompt": 0} | grid for grid in self.settings])


def read_experiment(path: Path) -> Experiment:
    """The experiment in a JSON file.

    Raises:
        OSError: the file cannot be read.
        InputError: it is wrong; the message names the file and the key.
    """
    return parse(Experiment, path.read_bytes(), f"config {path}")


def expand(settings: Sequence[Mapping[str, Any]]) -> list[TTFTConfig]:
    """Every configuration of some grids, once. Lists multiply out.

    Configurations that differ in nothing that matters are one. One that adapts nothing is left out:
    every row has the scores without adaptation.

    Raises:
        InputError: a setting is unknown or wrong, or nothing is left to measure.
    """
    configs: dict[str, TTFTConfig] = {}
    for number, grid in enumerate(settings):
        try:
            for values in _combinations(grid):
                config = TTFTConfig(**values)
                if config.active():
                    configs.setdefault(key_of(config.settings()), config)
        except InputError as error:
            raise InputError(f"settings[{number}]: {error}") from error
    if not configs:
        raise InputError(
            "settings: nothing to measure where every technique is off, or a list is empty"
        )
    return list(configs.values())


def _combinations(grid: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    axes = [
        value if isinstance(value, list | tuple) else [value] for value in grid.values()
    ]
    for values in product(*axes):
        yield dict(zip(grid, values, strict=True))
