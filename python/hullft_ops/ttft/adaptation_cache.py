"""Trained parameters on disk, so that nobody trains twice on the same texts.

An entry's name is the SHA-256 of everything that decides its bits. Entries hold no text.
"""

import json
import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hullft_ops.ttft.retrieval.support import Support

import hullft_ops
from hullft_ops._checks import check_integer
from hullft_ops.ttft._files import UUID, alone_in, replacing
from hullft_ops.ttft.fingerprint import sampled_digest, weights_digest
from hullft_ops.ttft.model.snapshot import put

DEFAULT_BYTES = 4 << 30
_ENTRY = re.compile(r"[0-9a-f]{64}\.safetensors")
_REMAINS = re.compile(rf"\.[0-9a-f]{{64}}\.safetensors\.{UUID}\.partial")
# The key of an entry's metadata.
_ABOUT = "hullft_ops"


@dataclass(eq=False)
class AdaptationCache:
    """Keeps the trained parameters of the supports that were used last; none without a folder.

    ``limit`` is the size of all entries in bytes. A file that is being written comes on top.
    """

    folder: str | Path | None
    limit: int
    model: "PreTrainedModel"
    settings: Mapping[str, Any]

    def __post_init__(self) -> None:
        check_integer("TestTimeFinetuner", "cache_bytes", self.limit, 0, 1 << 63)
        self._named = {
            n: p for n, p in self.model.named_parameters() if p.requires_grad
        }
        if self.folder is None:
            return
        size = sum(p.nbytes for p in self._named.values())
        if size > self.limit:
            raise ValueError(
                f"TestTimeFinetuner: cache_bytes must be at least {size}, the bytes of the trained "
                f"parameters, got {self.limit}"
            )
        Path(self.folder).mkdir(parents=True, exist_ok=True)

    def entry(self, support: "Support", refreshes: Sequence[int]) -> Path | None:
        """The file of an entry; None if nothing is kept. Call it before the model changes."""
        if self.folder is None or not support.indices:
            return None
        # All bytes are read once. This notices a model that was trained further in between.
        digest = sampled_digest(self.model)
        device = self.model.device.type
        autocast = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(
            device
        )
        callers = f"{autocast} {torch.get_float32_matmul_precision()}"
        experts = list(zip(support.expert_indices, support.expert_weights, strict=True))
        steps = json.dumps([support.input_ids, support.counts, refreshes, experts])
        digest.update(f"{self._base}{callers}{steps}".encode())
        return Path(self.folder) / f"{digest.hexdigest()}.safetensors"

    def train(
        self,
        entry: Path | None,
        counts: Sequence[int],
        train: Callable[[], tuple[list[float], list[int]]],
    ) -> tuple[list[float], list[int], bool]:
        """Put trained parameters into the model: those of an entry, or else what ``train`` makes.

        Returns losses, steps on each text, and whether they come from an entry.
        """
        if entry is None:
            return *train(), False
        losses = self._read(entry)
        if losses is not None:
            return losses, list(counts), True
        losses, taken = train()
        # A budget may have left some out.
        if taken == list(counts):
            self._write(entry, losses)
        return losses, taken, False

    @cached_property
    def _base(self) -> str:
        import transformers

        model: Any = self.model
        config = model.config.to_dict()
        # The same model in another folder is the same model.
        config.pop("_name_or_path", None)
        configs = getattr(model, "peft_config", {}).items()
        adapters = {
            n: c.to_dict() | {"base_model_name_or_path": None} for n, c in configs
        }
        versions = [hullft_ops.__version__, torch.__version__, transformers.__version__]
        attention = getattr(model.config, "_attn_implementation", None)
        about = [
            weights_digest(model.state_dict()),
            type(model).__name__,
            config,
            attention,
        ]
        about += [
            adapters,
            model.device.type,
            list(self._named),
            self.settings,
            versions,
        ]
        return json.dumps(about, sort_keys=True, default=_plain)

    def _read(self, entry: Path) -> list[float] | None:
        """Copy an entry into the model; its losses, or None if there is no sound entry."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(entry, framework="pt") as file:
                about = json.loads(file.metadata()[_ABOUT])
                tensors = {name: file.get_tensor(name) for name in self._named}
            losses: list[float] = about["losses"]
            if weights_digest(tensors) != about["sha256"]:
                raise ValueError("its checksum is wrong")
        except FileNotFoundError:
            return None
        except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
            warnings.warn(
                f"TestTimeFinetuner: {entry} is damaged, and made again: {error}",
                stacklevel=2,
            )
            return None
        put(tensors.values(), self._named.values())
        with suppress(OSError):  # another process may have dropped it, or own it
            os.utime(entry)
        return losses

    def _write(self, entry: Path, losses: list[float]) -> None:
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        tensors = {name: p.detach().contiguous() for name, p in self._named.items()}
        about = json.dumps({"sha256": weights_digest(tensors), "losses": losses})
        try:
            with alone_in(entry.parent), replacing(entry) as partial:
                # Of processes that were killed while they wrote: nobody else writes now.
                for path in entry.parent.iterdir():
                    if _REMAINS.fullmatch(path.name):
                        path.unlink()
                save_file(tensors, partial, metadata={_ABOUT: about})
                self._make_room(entry, partial.stat().st_size)
        except (OSError, SafetensorError) as error:
            warnings.warn(
                f"TestTimeFinetuner: {entry} is not kept: {error}", stacklevel=2
            )

    def _make_room(self, entry: Path, size: int) -> None:
        if size > self.limit:
            raise OSError(f"it has {size} bytes, cache_bytes is {self.limit}")
        others = [
            p for p in entry.parent.iterdir() if _ENTRY.fullmatch(p.name) and p != entry
        ]
        # From the last that was used to the first.
        for other in sorted(others, key=lambda p: p.stat().st_mtime_ns, reverse=True):
            size += other.stat().st_size
            if size > self.limit:
                other.unlink()


def _plain(value: object) -> object:
    # The order of a set differs from process to process.
    return sorted(map(str, value)) if isinstance(value, set) else str(value)
