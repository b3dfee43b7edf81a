"""Building experts: one for each cluster of a datastore, and going on after a kill."""

import re
import shutil
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from rich.console import Console
from safetensors.torch import load_file, save
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hullft_ops._checks import check_integer, check_number
from hullft_ops._extras import needed_by
from hullft_ops.collect_env import versions_of
from hullft_ops.ttft._files import UUID, staging_folder, sync, write_durably
from hullft_ops.ttft._progress import progress_bar
from hullft_ops.ttft.experts.expert_trainer import ExpertTrainer
from hullft_ops.ttft.experts.folder import (
    CENTROIDS_FILE,
    MAX_EXPERTS,
    Clusters,
    Experts,
    Manifest,
    check_plain,
    checked_file,
    checked_files,
    fingerprint,
    folder_of,
    store_digest,
)
from hullft_ops.ttft.model.causal import check_causal
from hullft_ops.ttft.model.context import context_length
from hullft_ops.ttft.model.exclusive import Claim
from hullft_ops.ttft.store.base import Store
from hullft_ops.ttft.store.format import MANIFEST_FILE, prefixed
from hullft_ops.ttft.store.writer import locked
from hullft_ops.ttft.training.checks import autocast_dtype

_FUNCTION = "build_experts"
# What a killed build leaves behind. A person would not choose such a name.
_PARTIAL = re.compile(
    rf"\.(?:[0-9]{{4}}|{MANIFEST_FILE}|{CENTROIDS_FILE})\.{UUID}\.partial"
)

# An expert, and the positions of its texts.
Task = tuple[int, list[int]]
# Yields each expert with its files, in any order.
TrainExperts = Callable[[Manifest, list[Task]], Generator[tuple[int, dict[str, bytes]]]]


def build_experts(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    store: Store,
    path: str | Path,
    *,
    clusters: int = 64,
    rank: int = 16,
    passages: int | None = None,
    lr: float = 5e-4,
    max_length: int | None = None,
    dtype: str | None = None,
    full: bool = False,
    seed: int = 0,
    console: Console | None = None,
    train: TrainExperts | None = None,
) -> Experts:
    """Cluster a datastore, train an expert for each cluster, and write them to ``path``.

    An expert is a LoRA adapter on all linear layers but the head, trained from the base model in
    one epoch over its cluster's texts, nearest to the centroid first. Adam takes one step on each
    text; its rate falls linearly to 0. Texts of fewer than 2 tokens are left out; a cluster of only
    such texts gets an expert that changes nothing. Other threads may not use the model meanwhile.

    After a kill at any moment, the same call trains the missing experts. With one thread, the files
    have the same bits as without the kill.

    Args:
        model: the base model, with plain weights in floating point.
        path: the folder to create, or one with experts of the same settings to finish.
        clusters: number of experts, at most one for each text.
        passages: train on at most so many texts of a cluster; None for all.
        lr: Adam's learning rate at the first step.
        max_length, dtype: as in `TestTimeFinetuner`. The experts stay in float32.
        full: train all parameters with ``requires_grad``, and keep the differences of the weights.
            Each expert is then as large as the model, and training takes four times that besides.
        seed: chooses the clusters and the adapters' first values.
        console: shows the progress; None shows none.
        train: trains elsewhere, as `hullft_ops.ttft.scale.experts.ray_training` does.

    Raises:
        ImportError: PEFT or FAISS is not installed.
        TypeError, ValueError: an argument is wrong; the model is quantized, has PEFT adapters or is
            not causal; the datastore is filtered; ``path`` holds experts of other settings or a
            damaged one; or another process is writing there.
        FileExistsError: ``path`` holds something else.
        NonFiniteLossError: a loss is not finite. The experts before stay.
        RuntimeError: the model is adapted at the moment.
        OSError, torch.OutOfMemoryError: disk or memory is full. The same call continues.
    """
    clusters = check_integer(_FUNCTION, "clusters", clusters, 1, MAX_EXPERTS)
    rank = check_integer(_FUNCTION, "rank", rank, 1, 4096)
    seed = check_integer(_FUNCTION, "seed", seed, 0)
    if passages is not None:
        passages = check_integer(_FUNCTION, "passages", passages, 1)
    if not 0 < check_number(_FUNCTION, "lr", lr) < float("inf"):
        raise ValueError(f"{_FUNCTION}: lr must be above 0 and finite, got {lr}")
    if clusters > len(store):
        raise ValueError(
            f"{_FUNCTION}: clusters is {clusters}, the store has {len(store)} texts"
        )
    if len(store.embeddings) != len(store):
        raise ValueError(
            f"{_FUNCTION}: store must have all of its texts at hand, got {len(store)} to search "
            f"and {len(store.embeddings)} embeddings: build from a datastore without a filter"
        )
    check_plain(_FUNCTION, model)
    check_causal(_FUNCTION, model, tokenizer)
    autocast = autocast_dtype(_FUNCTION, dtype, model.device)
    path = Path(path)

    def train_here(
        manifest: Manifest, tasks: list[Task]
    ) -> Generator[tuple[int, dict[str, bytes]]]:
        trainer = ExpertTrainer(model, tokenizer, store, manifest)
        for expert, positions in tasks:
            yield expert, trainer.files(expert, positions)

    with Claim(model, list(model.parameters())):
        manifest = Manifest(
            kind="full" if full else "lora",
            model=model.name_or_path or "",
            fingerprint=fingerprint(model),
            store=store_digest(store),
            embedder=store.embedder,
            clusters=clusters,
            rank=0 if full else rank,
            # With alpha equal to the rank, a product counts once.
            scale=1.0,
            fan_in_fan_out=not full and _fan_in_fan_out(model),
            seed=seed,
            lr=float(lr),
            passages=passages,
            max_length=context_length(_FUNCTION, model, tokenizer, max_length),
            dtype=None if autocast is None else "bfloat16",
            versions=versions_of(
                ("hullft_ops", "faiss-cpu", "peft", "torch", "transformers")
            ),
        )
        if path.exists() and not path.is_dir():
            raise FileExistsError(f"{_FUNCTION}: {path} exists and is not a folder")
        path.mkdir(parents=True, exist_ok=True)
        with locked(path, "experts"):
            _fill(path, _begun(path, manifest), store, train or train_here, console)
    return Experts.open(path)


def _begun(path: Path, asked: Manifest) -> Manifest:
    """The manifest in a new folder, or in one that was begun with the same settings."""
    entries = {entry for entry in path.iterdir() if not entry.is_symlink()}
    partials = {entry for entry in entries if _PARTIAL.fullmatch(entry.name)}
    if path / MANIFEST_FILE in entries:
        with prefixed(_FUNCTION):
            begun = Manifest.read(path)
        ours, theirs = asdict(asked), asdict(begun)
        # Model and kind decide the layout of weights.
        free = ("files", "finished", "fan_in_fan_out")
        odd = [name for name in ours if ours[name] != theirs[name] and name not in free]
        if odd:
            built = ", ".join(f"{name} {theirs[name]!r}" for name in odd)
            wanted = ", ".join(f"{name} {ours[name]!r}" for name in odd)
            said = f"{path} was built with {built}, asked for {wanted}: name another folder"
            raise ValueError(f"{_FUNCTION}: {said}")
    else:
        if others := sorted(set(path.iterdir()) - partials):
            raise FileExistsError(
                f"{_FUNCTION}: {path} holds {others[0].name}, which is no expert"
            )
        asked.write(path)
        begun = asked
    for entry in partials:
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    return begun


def _fill(
    path: Path,
    manifest: Manifest,
    store: Store,
    train: TrainExperts,
    console: Console | None,
) -> None:
    """Add what the folder lacks: clusters, experts and the finished manifest."""
    if CENTROIDS_FILE in manifest.files:
        groups = Clusters(**load_file(checked_file(path, manifest, CENTROIDS_FILE)))
    else:
        groups = spherical_clusters(store.embeddings, manifest.clusters, manifest.seed)
        content = save(vars(groups))
        write_durably(path / CENTROIDS_FILE, content)
        manifest = _recorded(path, manifest, {CENTROIDS_FILE: content})
    sizes = groups.sizes.clamp(max=manifest.passages or len(groups.texts)).tolist()
    built = [n for n in range(len(sizes)) if (path / folder_of(n)).exists()]
    with prefixed(_FUNCTION):
        for expert in built:
            checked_files(path, manifest, expert)
    tasks = [(n, groups.texts_of(n)) for n in range(len(sizes)) if n not in built]
    done = sum(sizes[expert] for expert in built)
    with progress_bar(console, shown=console is not None) as bar:
        task = bar.add_task("training experts", total=sum(sizes), completed=done)
        with closing(train(manifest, tasks)) as trained:
            for expert, files in trained if tasks else ():
                folder = path / folder_of(expert)
                # A kill leaves all of the expert, or nothing that counts.
                with staging_folder(folder) as staged:
                    for name, content in files.items():
                        write_durably(staged / name, content)
                    # First the checksums: a folder that is in place can always be verified.
                    written = {f"{folder.name}/{name}": files[name] for name in files}
                    manifest = _recorded(path, manifest, written)
                    staged.rename(folder)
                sync(path)
                bar.advance(task, sizes[expert])
    replace(manifest, finished=True).write(path)


def _recorded(path: Path, manifest: Manifest, files: dict[str, bytes]) -> Manifest:
    """The manifest with the checksums of more files, on the disk."""
    sums = manifest.files | {
        name: sha256(content).hexdigest() for name, content in files.items()
    }
    # Workers may finish in any order.
    manifest = replace(manifest, files=dict(sorted(sums.items())))
    manifest.write(path)
    return manifest


def _fan_in_fan_out(model: "PreTrainedModel") -> bool:
    """Whether the weights that adapters change are ``[in, out]``, as those of GPT-2."""
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    linear = (
        m
        for m in model.modules()
        if isinstance(m, nn.Linear | Conv1D) and m is not head
    )
    kinds = {isinstance(module, Conv1D) for module in linear}
    if len(kinds) != 1:
        raise ValueError(
            f"{_FUNCTION}: model must have linear layers of one kind beside its head, got "
            f"{'Linear and Conv1D' if kinds else 'none'} in {type(model).__name__}"
        )
    return kinds.pop()


def spherical_clusters(embeddings: torch.Tensor, clusters: int, seed: int) -> Clusters:
    """Cluster unit vectors, float32 ``[count, dim]``, by their inner products, with FAISS."""
    with needed_by(_FUNCTION):
        import faiss

    matrix = embeddings.numpy()
    kmeans = faiss.Kmeans(
        matrix.shape[1],
        clusters,
        niter=25,
        spherical=True,
        seed=seed,
        # A small datastore has fewer; FAISS would warn.
        min_points_per_centroid=1,
        # As many texts for each cluster decide its place; the others only join a cluster.
        max_points_per_centroid=256,
    )
    kmeans.train(matrix)
    scores, nearest = kmeans.assign(matrix)
    labels = _none_empty(nearest, scores, clusters)
    groups = [np.flatnonzero(labels == cluster) for cluster in range(clusters)]
    means = [matrix[rows].mean(axis=0, dtype=np.float64) for rows in groups]
    centroids = np.stack(means).astype(np.float32)
    # On ties the lower position comes first.
    texts = [
        rows[np.argsort(-(matrix[rows] @ centroid), kind="stable")]
        for rows, centroid in zip(groups, centroids, strict=True)
    ]
    sizes, ordered = np.array([len(rows) for rows in groups]), np.concatenate(texts)
    return Clusters(*map(torch.from_numpy, (centroids, sizes, ordered)))


def _none_empty(nearest: np.ndarray, scores: np.ndarray, clusters: int) -> np.ndarray:
    """The cluster of each text. Equal embeddings can leave a centroid without any: it gets the text
    farthest from its own centroid, out of a cluster that keeps another."""
    labels, sizes = nearest.copy(), np.bincount(nearest, minlength=clusters)
    for empty in np.flatnonzero(sizes == 0):
        text = np.where(sizes[labels] > 1, scores, np.inf).argmin()
        sizes[labels[text]] -= 1
        labels[text], sizes[empty] = empty, 1
    return labels
