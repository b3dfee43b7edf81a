"""Trained parameters on disk, so that nobody trains twice on the same texts.

An entry's name is the SHA-256 of everything that decides its bits: the model's weights and
configuration, the tokens of the support's texts with their steps, the settings of the training and
the versions of the packages. What the prompt, the tokenizer, the datastore and the method decide
is the support. Entries hold parameters and losses, no text.
"""

import fcntl
import json
import os
import re
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

import hullft_ops
from hullft_ops._checks import check_integer
from hullft_ops.ttft._files import UUID, replacing
from hullft_ops.ttft.fingerprint import bytes_of, sampled_digest, weights_digest

DEFAULT_BYTES = 4 << 30
_ENTRY = re.compile(r"[0-9a-f]{64}\.safetensors")
_REMAINS = re.compile(rf"\.[0-9a-f]{{64}}\.safetensors\.{UUID}\.partial")
# The key of an entry's metadata.
_ABOUT = "hullft_ops"


class AdaptationCache:
    """Keeps the trained parameters of supports, the most recently used ones.

    Args:
        folder: where the entries are; it is made if it is missing. None keeps nothing.
        limit: bytes of all entries. A file that is being written comes on top.
        model: the model.
        trained: its trained parameters.
        settings: the settings of the training.

    Raises:
        TypeError: ``limit`` is not an int.
        ValueError: ``limit`` is below the size of the trained parameters.
    """

    def __init__(
        self,
        folder: str | Path | None,
        limit: int,
        model: "PreTrainedModel",
        trained: Sequence[nn.Parameter],
        settings: Mapping[str, Any],
    ) -> None:
        self._folder = None if folder is None else Path(folder)
        self._limit = check_integer("TestTimeFinetuner", "cache_bytes", limit, 0, 1 << 63)
        self._model = model
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        self._trained = {names[id(parameter)]: parameter for parameter in trained}
        self._settings = settings
        if self._folder is None:
            return
        size = sum(p.numel() * p.element_size() for p in trained)
        if size > limit:
            raise ValueError(
                f"TestTimeFinetuner: cache_bytes must be at least {size}, the bytes of the trained "
                f"parameters, got {limit}"
            )
        self._folder.mkdir(parents=True, exist_ok=True)

    def key(
        self,
        texts: Sequence[Sequence[int]],
        counts: Sequence[int],
        refreshes: Sequence[int],
        experts: Sequence[tuple[int, float]],
    ) -> str | None:
        """The name of an entry; None if nothing is kept. Call it before the model changes.

        Args:
            texts: the tokens of each text.
            counts: the steps on each.
            refreshes: the steps per gradient of each.
            experts: those that are merged before, with their weights.
        """
        if self._folder is None or not texts:
            return None
        # All bytes are read once. This notices a model that was trained further in between.
        digest = sampled_digest(self._model)
        device = self._model.device.type
        autocast = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)
        callers = f"{autocast} {torch.get_float32_matmul_precision()}"
        support = json.dumps([texts, counts, refreshes, experts])
        digest.update(f"{self._base}{callers}{support}".encode())
        return digest.hexdigest()

    def train(
        self,
        key: str | None,
        counts: Sequence[int],
        train: Callable[[], tuple[list[float], list[int]]],
    ) -> tuple[list[float], list[int], bool]:
        """Put trained parameters into the model: those of an entry, or else what ``train`` makes.

        A result is kept if ``train`` took all steps. Warns of a damaged entry, and if an entry
        cannot be written.

        Args:
            key: from `key`.
            counts: the steps on each text.
            train: returns the losses, and the steps that it took on each text.

        Returns:
            Losses, steps on each text, and whether they come from an entry.
        """
        if self._folder is None or key is None:
            return *train(), False
        entry = self._folder / f"{key}.safetensors"
        losses = self._read(entry)
        if losses is not None:
            return losses, list(counts), True
        losses, taken = train()
        if taken == list(counts):
            self._write(entry, losses)
        return losses, taken, False

    @cached_property
    def _base(self) -> str:
        import transformers

        model: Any = self._model
        config = model.config.to_dict()
        # The same model in another folder is the same model.
        config.pop("_name_or_path", None)
        adapters = {n: c.to_dict() for n, c in getattr(model, "peft_config", {}).items()}
        versions = [hullft_ops.__version__, torch.__version__, transformers.__version__]
        attention = getattr(model.config, "_attn_implementation", None)
        about = [weights_digest(model), type(model).__name__, config, attention, adapters]
        about += [model.device.type, list(self._trained), self._settings, versions]
        return json.dumps(about, sort_keys=True, default=_plain)

    def _read(self, entry: Path) -> list[float] | None:
        """Copy an entry into the model; its losses, or None if there is no sound entry."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(entry, framework="pt") as file:
                about = json.loads(file.metadata()[_ABOUT])
                tensors = {name: file.get_tensor(name) for name in self._trained}
            losses: list[float] = about["losses"]
            if _checksum(tensors) != about["crc32"]:
                raise ValueError("its checksum is wrong")
        except FileNotFoundError:
            return None
        except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
            warnings.warn(
                f"TestTimeFinetuner: {entry} is damaged, and made again: {error}", stacklevel=2
            )
            return None
        with torch.inference_mode(False), torch.no_grad():
            for name, parameter in self._trained.items():
                parameter.copy_(tensors[name])
        # A caller's autocast holds copies of the weights before.
        torch.clear_autocast_cache()
        with suppress(OSError):  # another process may have dropped it, or own it
            os.utime(entry)
        return losses

    def _write(self, entry: Path, losses: list[float]) -> None:
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        tensors = {name: p.detach().contiguous() for name, p in self._trained.items()}
        about = json.dumps({"crc32": _checksum(tensors), "losses": losses})
        try:
            with _locked(entry.parent), replacing(entry) as partial:
                self._drop_remains(entry.parent)
                save_file(tensors, partial, metadata={_ABOUT: about})
                self._make_room(entry, partial.stat().st_size)
        except (OSError, SafetensorError) as error:
            warnings.warn(f"TestTimeFinetuner: {entry} is not kept: {error}", stacklevel=2)

    def _drop_remains(self, folder: Path) -> None:
        """Of processes that were killed while they wrote: nobody else writes now."""
        for path in folder.iterdir():
            if _REMAINS.fullmatch(path.name):
                path.unlink()

    def _make_room(self, entry: Path, size: int) -> None:
        if size > self._limit:
            raise OSError(f"it has {size} bytes, cache_bytes is {self._limit}")
        others = [p for p in entry.parent.iterdir() if _ENTRY.fullmatch(p.name) and p != entry]
        found = sorted((p.stat().st_mtime_ns, p.stat().st_size, p) for p in others)
        total = size + sum(one for _, one, _ in found)
        for _, one, path in found:
            if total <= self._limit:
                return
            path.unlink()
            total -= one


def _plain(value: object) -> object:
    # The order of a set differs from process to process.
    return sorted(map(str, value)) if isinstance(value, set) else str(value)


def _checksum(tensors: Mapping[str, torch.Tensor]) -> int:
    value = 0
    for name, tensor in tensors.items():
        value = zlib.crc32(f"{name} {tensor.dtype} {list(tensor.shape)}".encode(), value)
        value = zlib.crc32(bytes_of(tensor), value)
    return value


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Wait until nobody else writes. The system unlocks the folder if the process dies."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
