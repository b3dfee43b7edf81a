"""The command of ``hullft-ops`` that trains one adapter for a datastore."""

from pathlib import Path
from typing import Annotated, Any

import tyro

from hullft_ops.cli.options import fields_of
from hullft_ops.ttft.adapter_training import AdapterConfig, train_adapter
from hullft_ops.ttft.files import check_output
from hullft_ops.ttft.models.loading import ModelConfig
from hullft_ops.ttft.store.datastore import Datastore
from hullft_ops.ttft.terminal import echo, waiting


def train(
    store: tyro.conf.Positional[Path],
    training: Annotated[dict[str, Any], fields_of(AdapterConfig)],
    model: Annotated[dict[str, Any], fields_of(ModelConfig)],
    *,
    output: Path,
) -> None:
    """Train one LoRA on the passages of a datastore; after a kill, run the same command again.

    Args:
        store: folder of a datastore, which hullft-ops index makes.
        training: how to train.
        model: the language model.
        output: new folder for the adapter, which PEFT and the option --adapter take.
    """
    config, model_config = AdapterConfig(**training), ModelConfig(**model)
    check_output(output, inputs=[store, model_config.model])
    datastore = Datastore.open(store)
    with waiting("loading the model"):
        loaded = model_config.load()
    train_adapter(*loaded, datastore, output, **training)
    echo(f"an adapter of rank {config.rank} is in {output}")
