"""The results of an evaluation: a JSONL file that a killed run goes on with.

A row is appended and synced to the disk before the next one is begun, so a kill loses at most the
row in progress. A last line that was cut off is dropped when the file is opened again.
"""

import fcntl
import hashlib
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
from hullft_ops.ttft.evaluation.config import ConfigError, config_id
from hullft_ops.ttft.store.datastore import Datastore
from hullft_ops.ttft.store.sources import object_of

STAGES = ("embed", "search", "select", "finetune")


@dataclass(frozen=True)
class Row:
    """One configuration on one prompt.

    Attributes:
        run: fingerprint of model, tokenizer, datastore, embedder and seed.
        prompt: id of the prompt, which its text decides.
        config: id of the configuration, which ``settings`` decides.
        settings: keyword arguments of `TestTimeFinetuner`.
        domain: the prompt's.
        excerpt: how the prompt begins.
        seed: of whatever is random.
        bits_per_byte_before: without adaptation.
        bits_per_byte_after: adapted; None where a loss was not finite, see ``error``.
        bytes_scored: of the prompt.
        seconds: wall-clock seconds by stage: "embed" and "search" (measured once for a prompt),
            "select", "finetune", to which reading the texts in the context counts; empty where
            there is an error.
        seconds_row: wall-clock seconds that the row took, scoring and restoring included.
        passes: forward-backward passes.
        steps: optimizer steps.
        support_size: different texts.
        residual: distance from the prompt's embedding to the weighted mean of the support.
        error: why there is no result; None where there is.
        versions: of the packages that decide the numbers, and the type of the model's device.
        threads: of torch.
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
        """From the prompt to the adapted model."""
        return sum(self.seconds.values())


_ROW_BEGINS = b'{"run": "'
# Of any number in a row; beyond it, sums are infinite.
_LARGEST = 1e100
_TYPES: dict[tuple[str, ...], Any] = {
    ("run", "prompt", "config", "domain", "excerpt"): str,
    ("settings", "seconds", "versions"): dict,
    ("seed", "bytes_scored", "passes", "steps", "support_size", "threads"): int,
    ("bits_per_byte_before", "seconds_row"): int | float,
    ("bits_per_byte_after", "residual"): int | float | None,
    ("error",): str | None,
}


class ResultsFile:
    """Rows on disk, by prompt and configuration. Made by `open_results`."""

    def __init__(self, path: Path, descriptor: int, rows: dict[tuple[str, str], Row]) -> None:
        self.path = path
        self.rows = rows
        self._descriptor = descriptor

    def append(self, row: Row) -> None:
        """Write a row; it is on the disk when this returns, and where it raises not in the file.

        Raises:
            ValueError: there is one for that prompt and configuration.
            OSError: it cannot be written; the message says so where the disk is full.
        """
        if row.key in self.rows:
            raise ValueError(f"{self.path} holds a row of {row.config} on {row.prompt}")
        line = json.dumps(asdict(row), ensure_ascii=False, allow_nan=False).encode() + b"\n"
        with full_disk_explained(
            self.path, "the rows before are kept: free some space, then run the same again"
        ):
            self._write(line)
        self.rows[row.key] = row

    def _write(self, line: bytes) -> None:
        size = os.fstat(self._descriptor).st_size
        try:
            while line:
                line = line[os.write(self._descriptor, line) :]
            os.fsync(self._descriptor)
        except BaseException:
            # The next row must not be written behind half of this one.
            os.ftruncate(self._descriptor, size)
            raise


@contextmanager
def open_results(path: Path, run: str) -> Iterator[ResultsFile]:
    """A results file to append to, made where there is none; no other process may hold it.

    Raises:
        ConfigError: it is held by another process, holds rows of another run, or lines that are
            not rows.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        _lock(descriptor, path)
        rows = {row.key: row for row in read_rows(path)}
        other = next((row for row in rows.values() if row.run != run), None)
        if other is not None:
            raise ConfigError(
                f"{path} holds rows of another model, tokenizer, datastore, embedder or seed "
                f"(run {other.run}, this one is {run}); name another file"
            )
        # Not before: what is no results file is left as it is.
        _drop_torn_line(descriptor, path)
        yield ResultsFile(path, descriptor, rows)
    finally:
        os.close(descriptor)


def read_rows(path: Path) -> list[Row]:
    """The rows of a results file, in their order; a last line that is cut off is left out.

    Raises:
        ConfigError: no such file, a line that is not a row, or two of one prompt and configuration.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"results {path}: {error.strerror}") from error
    rows: dict[tuple[str, str], Row] = {}
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        row = _row(line, f"results {path}: line {number}")
        if row.key in rows:
            raise ConfigError(f"results {path}: line {number}: a second row of {row.key}")
        rows[row.key] = row
    return list(rows.values())


def _row(line: bytes, where: str) -> Row:
    try:
        content = object_of(line)
        # No page could be written with half a surrogate pair.
        json.dumps(content, ensure_ascii=False).encode()
        row = Row(**{field.name: content[field.name] for field in fields(Row)})
    except KeyError as error:
        raise ConfigError(f"{where}: lacks {error}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: not a row: {error}") from error
    _check_types(row, where)
    # Files of earlier versions hold names with rounded numbers.
    return replace(row, config=config_id(row.settings))


def _check_types(row: Row, where: str) -> None:
    for names, wanted in _TYPES.items():
        for name in names:
            value = getattr(row, name)
            if not isinstance(value, wanted) or not _is_sound(value):
                kind = getattr(wanted, "__name__", wanted)
                sound = ", a number in 0..1e100" if isinstance(value, int | float) else ""
                raise ConfigError(f"{where}: {name} must be {kind}{sound}, got {value!r}")
    if not row.bits_per_byte_before > 0:
        raise ConfigError(
            f"{where}: bits_per_byte_before must be above 0, got {row.bits_per_byte_before}"
        )
    if row.error is None and row.bits_per_byte_after is None:
        raise ConfigError(f"{where}: must have bits_per_byte_after or an error, got neither")
    seconds = row.seconds
    numbers = all(isinstance(v, int | float) and _is_sound(v) for v in seconds.values())
    stages: set[str] = set() if row.error is not None and not seconds else set(STAGES)
    if not numbers or seconds.keys() != stages or (stages and not seconds["finetune"] > 0):
        raise ConfigError(f"{where}: seconds must be numbers, of {STAGES}, got {seconds!r}")
    named = {"method": str, "n_select": int, "refresh": int, "lr": int | float}
    for name, kind in named.items():
        value = row.settings.get(name)
        if not isinstance(value, kind) or not _is_sound(value):
            raise ConfigError(f"{where}: settings lack a {name}, got {row.settings!r}")
    length = row.settings.get("max_length")
    if length is not None and type(length) is not int:
        raise ConfigError(f"{where}: max_length must be an integer, got {length!r}")


def _is_sound(value: object) -> bool:
    """Whether a number is one that statistics can be made of; anything else is."""
    if isinstance(value, int | float):
        return not isinstance(value, bool) and 0 <= value < _LARGEST
    return True


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ConfigError(f"results {path}: another process is writing to it") from error


def _drop_torn_line(descriptor: int, path: Path) -> None:
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    torn = content[whole:]
    if not torn:
        return
    if not torn.startswith(_ROW_BEGINS[: len(torn)]):
        raise ConfigError(f"results {path}: its last line is no row, and none that was cut off")
    os.ftruncate(descriptor, whole)
    os.fsync(descriptor)


# Enough to tell two models apart. Reading all of a large model takes longer than a prompt.
_VALUES_OF_TENSOR = 1024
# Tokenizers with the same vocabulary may merge, normalise and prefix text differently.
_SENTENCE = "Naïve  TOKENS of x_1 = 3.14;\n\tİt's 10,000 日本 🙂"


def fingerprint(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, store: Datastore, seed: int
) -> str:
    """A name for the weights, the tokenizer, the datastore and its embedder, and the seed."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        head = tensor.detach().flatten()[:_VALUES_OF_TENSOR].float().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(head.numpy().tobytes())
    tokens = [sorted(tokenizer.get_vocab().items()), tokenizer(_SENTENCE)["input_ids"]]
    files = [*store.manifest.shards, store.manifest.embeddings]
    sums = [[file.bytes, file.crc32] for file in files]
    about = [tokens, store.manifest.embedder, len(store), seed, sums]
    digest.update(json.dumps(about).encode())
    return digest.hexdigest()[:16]
