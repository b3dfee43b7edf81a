"""The results of an evaluation: a JSONL file from which a killed run goes on."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from hullft_ops.ttft._files import full_disk_explained
from hullft_ops.ttft.evaluation.config import ConfigError, config_id, refusing
from hullft_ops.ttft.fingerprint import sampled_digest
from hullft_ops.ttft.store.datastore import Datastore
from hullft_ops.ttft.store.format import parsed
from hullft_ops.ttft.store.sources import object_of

STAGES = ("embed", "search", "select", "finetune")
# The stage of rows that merge experts.
MERGE = "merge"


@dataclass(frozen=True)
class Row:
    """One configuration on one prompt.

    Attributes:
        run: fingerprint of model, tokenizer, datastore, embedder and seed.
        prompt, config: ids, derived from the prompt's text and from ``settings``.
        settings: keyword arguments of `TestTimeFinetuner`.
        domain, excerpt: the prompt's domain and its beginning.
        bits_per_byte_before: without adaptation.
        bits_per_byte_after: with adaptation; None if a loss was not finite, see ``error``.
        seconds: wall-clock seconds by stage: "embed" and "search" (measured once for a prompt),
            "select", "finetune", which includes reading the texts in the context, and "merge" if
            experts were merged; empty after an error.
        seconds_row: wall-clock seconds of the whole row, including scoring and restoring. Of rows
            that share an adaptation, the first has those of all.
        passes, steps, support_size: numbers of forward-backward passes, of optimizer steps, and of
            different texts.
        residual: distance from the prompt's embedding to the weighted mean of the support.
        error: why there is no result; None if there is one.
        versions: versions of the packages that decide the numbers, and the model's type of device.
        threads: torch's number of threads.
    """

    run: str
    prompt: str
    config: str
    settings: dict[str, Any]
    domain: str
    excerpt: str
    seed: int
    bits_per_byte_before: float
    bits_per_byte_after: float | None
    bytes_scored: int
    seconds: dict[str, float]
    seconds_row: float
    passes: int
    steps: int
    support_size: int
    residual: float | None
    error: str | None
    versions: dict[str, str | None]
    threads: int

    @property
    def key(self) -> tuple[str, str]:
        return self.prompt, self.config

    @property
    def seconds_total(self) -> float:
        """Seconds from the prompt to the adapted model."""
        return sum(self.seconds.values())


_ROW_BEGINS = b'{"run": "'


@dataclass(frozen=True)
class _Settings:
    """The settings that every row has."""

    method: str
    n_select: int
    refresh: int
    lr: float


@dataclass
class ResultsFile:
    """Rows on disk, by prompt and configuration. `open_results` makes one."""

    path: Path
    descriptor: int
    rows: dict[tuple[str, str], Row]

    def append(self, row: Row) -> None:
        """Write a row. It is on the disk when this returns, and not in the file if this raises."""
        if row.key in self.rows:
            raise ValueError(f"{self.path} holds a row of {row.config} on {row.prompt}")
        line = (
            json.dumps(asdict(row), ensure_ascii=False, allow_nan=False).encode()
            + b"\n"
        )
        size = os.fstat(self.descriptor).st_size
        advice = "the rows before are kept: free some space, then run the same again"
        with full_disk_explained(self.path, advice):
            try:
                while line:
                    line = line[os.write(self.descriptor, line) :]
                os.fsync(self.descriptor)
            except BaseException:
                # The next row must not follow half of this one.
                os.ftruncate(self.descriptor, size)
                raise
        self.rows[row.key] = row


@contextmanager
def open_results(path: Path, run: str) -> Iterator[ResultsFile]:
    """Open a results file to append to, or create it. Drops a last line that a kill cut off.

    ConfigError if another process writes to it, it holds rows of another run, or as `read_rows`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"results {path}: another process is writing to it"
            ) from error
        rows = {row.key: row for row in read_rows(path)}
        other = next((row for row in rows.values() if row.run != run), None)
        if other is not None:
            raise ConfigError(
                f"{path} holds rows of another model, tokenizer, datastore, embedder or seed "
                f"(run {other.run}, this one is {run}); name another file"
            )
        # Not earlier: a file with other content must stay as it is.
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        torn = content[whole:]
        if not torn.startswith(_ROW_BEGINS[: len(torn)]):
            raise ConfigError(
                f"results {path}: its last line is neither a row nor a truncated one"
            )
        if torn:
            os.ftruncate(file.fileno(), whole)
            os.fsync(file.fileno())
        yield ResultsFile(path, file.fileno(), rows)


def read_rows(path: Path) -> list[Row]:
    """The rows of a results file in order, without a last line that is cut off.

    ConfigError if there is no such file, a line is not a row, or two rows have one ``key``.
    """
    rows: dict[tuple[str, str], Row] = {}
    with refusing(f"results {path}"):
        for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
            row = _row(line, f"line {number}")
            if row.key in rows:
                raise ValueError(f"line {number}: a second row of {row.key}")
            rows[row.key] = row
    return list(rows.values())


def _row(line: bytes, place: str) -> Row:
    """The row on a line. A ValueError names the ``place``."""
    with refusing(f"{place}: not a row", RecursionError):
        content = object_of(line)
        # Half a surrogate pair could not be written to any page.
        json.dumps(content, ensure_ascii=False).encode()
    names = [field.name for field in fields(Row)]
    if missing := [name for name in names if name not in content]:
        raise ValueError(f"{place}: lacks {missing[0]!r}")
    row = parsed(Row, {name: content[name] for name in names}, place)
    named = {field.name: row.settings.get(field.name) for field in fields(_Settings)}
    parsed(_Settings, named, f"{place}: settings")
    if wrong := next(_faults(row), None):
        raise ValueError(f"{place}: {wrong}")
    # Files of earlier versions have names with rounded numbers.
    return replace(row, config=config_id(row.settings))


def _faults(row: Row) -> Iterator[str]:
    """What is wrong with values of the right types."""
    if not row.bits_per_byte_before > 0:
        yield f"bits_per_byte_before must be above 0, got {row.bits_per_byte_before}"
    if row.error is None and row.bits_per_byte_after is None:
        yield "must have bits_per_byte_after or an error, got neither"
    stages = set(STAGES) if row.seconds or row.error is None else set()
    if stages and row.settings.get("n_experts"):
        stages.add(MERGE)
    if row.seconds.keys() != stages or (stages and not row.seconds["finetune"] > 0):
        yield f"seconds must be of {sorted(stages)}, got {row.seconds!r}"
    length = row.settings.get("max_length")
    if length is not None and type(length) is not int:
        yield f"max_length must be an integer, got {length!r}"


# Tokenizers with the same vocabulary may merge, normalise and prefix text differently.
_SENTENCE = "Naïve  TOKENS of x_1 = 3.14;\n\tİt's 10,000 日本 🙂"


def fingerprint(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, store: Datastore, seed: int
) -> str:
    """A name for the weights, the tokenizer, the datastore and its embedder, and the seed."""
    digest = sampled_digest(model)
    tokens = [sorted(tokenizer.get_vocab().items()), tokenizer(_SENTENCE)["input_ids"]]
    about = [
        tokens,
        store.manifest.embedder,
        len(store),
        seed,
        store.manifest.checksums,
    ]
    digest.update(json.dumps(about).encode())
    return digest.hexdigest()[:16]
