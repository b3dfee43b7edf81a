"""The folder of experts on disk, and reading them.

manifest.json                       see `Manifest`
centroids.safetensors               "centroids" float32 [C, dim], "sizes" int64 [C], "texts"
                                    int64 [count]: positions cluster by cluster, nearest first
0003/adapter_config.json            with the next file, a LoRA adapter as PEFT saves it
0003/adapter_model.safetensors
0003/difference.safetensors         in place of an adapter, if ``kind`` is "full"
"""

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import torch
from safetensors.torch import load_file, save

if TYPE_CHECKING:
    from transformers import PreTrainedModel

from hullft_ops._checks import check_integer
from hullft_ops.ttft._files import sha256_of
from hullft_ops.ttft.fingerprint import sampled_digest
from hullft_ops.ttft.store.base import Store
from hullft_ops.ttft.store.format import FolderManifest, prefixed, refuse_link
from hullft_ops.ttft.store.format import Manifest as DatastoreManifest

CENTROIDS_FILE = "centroids.safetensors"
CONFIG_FILE = "adapter_config.json"
ADAPTER_FILE = "adapter_model.safetensors"
DIFFERENCE_FILE = "difference.safetensors"
# The files of an expert, by kind. The last one holds its tensors.
FILES = {"lora": (CONFIG_FILE, ADAPTER_FILE), "full": (DIFFERENCE_FILE,)}
# What PEFT puts before the name of a module, and after it.
BEFORE, LORA_A, LORA_B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
MAX_EXPERTS = 10_000


@dataclass(frozen=True)
class Manifest(FolderManifest):
    """What experts were built from, and their files."""

    _what, _none = "experts", "holds no experts"
    _version = "format version {!r} of experts"

    kind: Annotated[str, ("lora", "full")]  # adapters, or differences of weights
    model: str  # the base model's name or directory; may be empty
    fingerprint: str  # names the base model's weights
    store: str  # names the datastore's content
    embedder: str
    clusters: Annotated[int, range(1, MAX_EXPERTS + 1)]  # number of experts
    rank: int  # of each adapter; 0 if ``kind`` is "full"
    scale: float  # factor on each adapter's product
    fan_in_fan_out: bool  # whether the adapted weights are ``[in, out]``, as GPT-2's
    seed: int  # of the clusters and of the adapters' first values
    lr: float  # Adam's learning rate at the first step
    passages: (
        int | None
    )  # texts of a cluster that its expert was trained on, at most; None for all
    max_length: int  # tokens of a text, at most
    dtype: str | None  # "bfloat16" if they were trained under autocast
    versions: dict[str, str | None]  # of the packages that decide the numbers
    # by the path in the folder
    files: Annotated[dict[str, str], "an object of SHA-256 sums"] = field(
        default_factory=dict
    )
    finished: bool = False
    format: str = "hullft_ops.experts"
    format_version: int = 1


class Factors(NamedTuple):
    """What is added to a weight: ``scale * b @ a``, with b ``[rows, r]`` and a ``[r, columns]``."""

    b: torch.Tensor
    a: torch.Tensor
    scale: float

    @property
    def shape(self) -> torch.Size:
        return torch.Size((self.b.shape[0], self.a.shape[1]))


Update = dict[str, Factors | torch.Tensor]


@dataclass(frozen=True)
class Clusters:
    """A datastore's texts in groups, each with one text at least: the tensors in CENTROIDS_FILE."""

    centroids: torch.Tensor
    sizes: torch.Tensor
    texts: torch.Tensor

    def texts_of(self, cluster: int) -> list[int]:
        """The positions of a cluster's texts, nearest to its centroid first."""
        found: list[int] = torch.split(self.texts, self.sizes.tolist())[
            cluster
        ].tolist()
        return found


@dataclass(eq=False, repr=False)
class Experts:
    """Experts for the regions of a datastore. `Experts.open` or `build_experts` makes them.

    Attributes:
        path: their folder.
        manifest: what they were built from.
        centroids: float32 ``[C, dim]``: the mean of the embeddings in each cluster, not normalised.
        sizes: int64 ``[C]``: the number of texts in each cluster.
    """

    path: Path
    manifest: Manifest
    centroids: torch.Tensor
    sizes: torch.Tensor
    _updates: dict[int, Update] = field(default_factory=dict, init=False)

    @cached_property
    def digest(self) -> str:
        """Names these experts by the checksums of their files."""
        files = json.dumps(self.manifest.files, sort_keys=True)
        return hashlib.sha256(files.encode()).hexdigest()[:8]

    @classmethod
    def open(cls, path: str | Path) -> "Experts":
        """Open the experts at ``path``. Reads the manifest and the centroids, no adapter.

        FileNotFoundError if there is no such folder, ValueError if it holds no experts, they are
        unfinished or have another format version, or the centroids are missing or damaged.
        """
        path = Path(path)
        with prefixed("Experts.open"):
            manifest = Manifest.read(path)
            if not manifest.finished:
                built = len(
                    {name.split("/")[0] for name in manifest.files if "/" in name}
                )
                found = f"{path} holds {built} of {manifest.clusters} experts"
                raise ValueError(
                    f"{found}: build them with the same settings again to continue"
                )
            tensors = load_file(checked_file(path, manifest, CENTROIDS_FILE))
        return cls(path, manifest, tensors["centroids"], tensors["sizes"])

    def __len__(self) -> int:
        return self.manifest.clusters

    def update(self, expert: int) -> Update:
        """What merging an expert alone adds to each weight, by the weight's name in the base model:
        `Factors`, or the difference itself if ``manifest.kind`` is "full".

        The first call compares checksums and maps the file; the tensors are read from the disk as
        they are used. Do not write to them. ValueError if there is no such expert, or a file of it
        is missing or damaged.
        """
        expert = check_integer("Experts.update", "expert", expert, 0, len(self) - 1)
        if expert not in self._updates:
            with prefixed("Experts.update"):
                *_, file = checked_files(self.path, self.manifest, expert)
            tensors, full = load_file(file), self.manifest.kind == "full"
            self._updates[expert] = {**tensors} if full else self._factors(tensors)
        return self._updates[expert]

    def check(self, model: "PreTrainedModel", store: Store, n_experts: int = 1) -> None:
        """Check that these experts belong to the model and store. Not while the model is adapted.

        Raises:
            ValueError: the model is quantized, has PEFT adapters or other weights than the base
                model; the datastore or its embedder is another; there are fewer experts than
                ``n_experts``; or an expert's file is missing.
        """
        count = check_integer("Experts.check", "n_experts", n_experts, 1)
        check_plain("Experts.check", model)
        manifest, ours = self.manifest, f"the experts in {self.path} are of"
        with prefixed("Experts.check"):
            if count > len(self):
                raise ValueError(
                    f"n_experts is {count}, {self.path} holds {len(self)} experts"
                )
            if (found := fingerprint(model)) != manifest.fingerprint:
                given = (
                    f"{model.name_or_path or type(model).__name__} with weights {found}"
                )
                base = manifest.model or "a model without a name"
                wanted = f"{base} with weights {manifest.fingerprint}"
                raise ValueError(f"model is {given}, {ours} {wanted}")
            embedder, dim = manifest.embedder, self.centroids.shape[1]
            if (store.embedder, store.dim) != (embedder, dim):
                given = f"{store.embedder} of dim {store.dim}"
                raise ValueError(
                    f"store has embeddings of {given}, {ours} {embedder} of dim {dim}"
                )
            if (found := store_digest(store)) != manifest.store:
                given = f"{len(store)} texts with digest {found}"
                wanted = f"one with {int(self.sizes.sum())} texts and digest {manifest.store}"
                raise ValueError(f"store has {given}, {ours} {wanted}")
            for name in manifest.files:
                if not (self.path / name).is_file():
                    raise ValueError(f"{self.path / name} is missing")

    def _factors(self, tensors: dict[str, torch.Tensor]) -> Update:
        found: Update = {}
        for key in [
            key.removesuffix(LORA_A) for key in tensors if key.endswith(LORA_A)
        ]:
            b, a = tensors[key + LORA_B], tensors[key + LORA_A]
            if self.manifest.fan_in_fan_out:
                b, a = a.T, b.T
            found[f"{key.removeprefix(BEFORE)}.weight"] = Factors(
                b, a, self.manifest.scale
            )
        return found


def folder_of(expert: int) -> str:
    """The name of an expert's folder."""
    return f"{expert:04d}"


def checked_files(folder: Path, manifest: Manifest, expert: int) -> list[Path]:
    """An expert's files, the one with its tensors last. ValueError as from `checked_file`."""
    names = (f"{folder_of(expert)}/{file}" for file in FILES[manifest.kind])
    return [checked_file(folder, manifest, name) for name in names]


def checked_file(folder: Path, manifest: Manifest, name: str) -> Path:
    """The file. ValueError if it is missing, or has another SHA-256 than in the manifest."""
    file, recorded = folder / name, manifest.files.get(name)
    refuse_link(file)
    remedy = f"delete {file.parent} to have it built again"
    if not file.is_file():
        raise ValueError(f"{file} is missing: {remedy}")
    if (found := sha256_of(file)) != recorded:
        sums = f"its SHA-256 is {found}, the manifest has {recorded}"
        raise ValueError(f"{file} is damaged: {sums}: {remedy}")
    return file


def adapter_files(
    config: dict[str, Any], tensors: dict[str, torch.Tensor]
) -> dict[str, bytes]:
    """The files of an adapter as PEFT saves it, by name."""
    # The order of a set differs from process to process.
    plain = {k: sorted(v) if isinstance(v, set) else v for k, v in config.items()}
    content = json.dumps(plain | {"inference_mode": True}, indent=2, sort_keys=True)
    # Cloned, because safetensors refuses views.
    copies = {
        name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()
    }
    return {
        CONFIG_FILE: content.encode(),
        ADAPTER_FILE: save(copies, metadata={"format": "pt"}),
    }


def check_plain(function: str, model: "PreTrainedModel") -> None:
    """Refuse a model whose weights experts cannot be added to: quantized, or with PEFT adapters."""
    name = type(model).__name__
    if getattr(model, "get_base_model", None) or any(
        hasattr(module, "base_layer") for module in model.modules()
    ):
        raise ValueError(
            f"{function}: model must be a plain one, as experts are of plain weights, got {name} "
            "with PEFT adapters: give the base model, after unload()"
        )
    odd = next(
        (n for n, p in model.named_parameters() if not p.is_floating_point()), None
    )
    if odd or getattr(model, "is_quantized", False):
        raise ValueError(
            f"{function}: model must have weights in floating point, as experts are, got {name} "
            f"that is quantized{f', for example {odd}' if odd else ''}: "
            "load it in float32 or bfloat16"
        )


def fingerprint(model: "PreTrainedModel") -> str:
    """A name for the model's weights, their shapes and dtypes."""
    return sampled_digest(model).hexdigest()[:16]


def store_digest(store: Store) -> str:
    """A name for a store's content."""
    digest = hashlib.sha256(store.embedder.encode())
    # Reading all of a large datastore would take longer than a prompt.
    manifest = getattr(store, "manifest", None)
    if isinstance(manifest, DatastoreManifest):
        digest.update(json.dumps(manifest.checksums).encode())
    else:
        digest.update(store.embeddings.numpy().data)
    return digest.hexdigest()[:16]
