"""One LoRA for a whole datastore: training it, and reading it again."""

import hashlib
import json
import math
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hullft_ops._terminal import progress_line
from hullft_ops.ttft.errors import NonFiniteLossError
from hullft_ops.ttft.files import check_output, new_folder, remove_files
from hullft_ops.ttft.models.loading import input_errors
from hullft_ops.ttft.models.lora import read_lora, with_lora
from hullft_ops.ttft.models.memory import out_of_memory_explained
from hullft_ops.ttft.models.modes import Precision
from hullft_ops.ttft.models.weights import layer_scale
from hullft_ops.ttft.reader import Reader
from hullft_ops.ttft.store.base import Store
from hullft_ops.ttft.training import MIN_TOKENS
from hullft_ops.ttft.validation import options_class

# What an adapter was trained with. PEFT ignores the file.
RECORD = "trained_with.json"
# Files of the training, also one that a kill cuts off.
_TRAINING = (
    f"training/{RECORD}",
    "training/checkpoint-[0-9]*",
    "training/tmp*",
    "training/tokens.arrow",
)
_FILES = (
    RECORD,
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    *_TRAINING,
)
_SAVE_STEPS = 100
_OUT_OF_MEMORY = "train_adapter: out of memory: lower batch_size or max_length"


@options_class
class AdapterConfig:
    """How `train_adapter` trains a LoRA."""

    rank: PositiveInt = 16
    """Rank of the matrices that are added to every linear layer but the head."""

    passages: PositiveInt | None = None
    """How many passages to train on, drawn at random; None for all."""

    minutes: PositiveFloat | None = None
    """When to end, if the passages last longer; None for no limit. Such a training begins anew
    after a kill."""

    epochs: PositiveInt = 1
    """How often to train on each passage."""

    lr: PositiveFloat = 5e-3
    """Learning rate of the first step, as a share of the median root mean square of the layers'
    weights; it falls linearly to 0 over the passages or minutes."""

    batch_size: PositiveInt = 1
    """Passages for each optimizer step."""

    max_length: PositiveInt | None = None
    """Tokens to cut passages to; None for the model's window."""

    dtype: Precision | None = None
    """bfloat16 to train under autocast; None for the model's own dtype."""

    seed: int = 0
    """Seed for sampling and shuffling passages, and for the LoRA's first values."""


def train_adapter(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    store: Store,
    path: str | Path,
    **options: Any,
) -> Path:
    """Train a LoRA on the passages of a datastore, and write it to ``path`` for PEFT.

    transformers' `Trainer` trains it, with AdamW, and writes checkpoints into a hidden folder
    beside ``path``. After a kill, the same call goes on from the last one. The model stays as it
    is.

    Args:
        model: a causal language model without adapters.
        tokenizer: the model's tokenizer.
        store: the passages. Those of fewer than 2 tokens are left out.
        path: the folder to make, for ``TTFTConfig.adapter``. It appears by a rename.
        options: fields of `AdapterConfig`.

    Returns:
        ``path``.

    Raises:
        TypeError, ValueError: an option is wrong; the model has adapters, is not causal or not on
            the first GPU; no passage has 2 tokens; the hidden folder has checkpoints of another
            training; or another process trains.
        FileExistsError: something else is at ``path``.
        NonFiniteLossError: a loss is not finite.
        torch.OutOfMemoryError: memory ran out. The same call goes on.
    """
    from transformers import set_seed

    config = AdapterConfig(**options)
    path = Path(path)
    check_output(path)
    if getattr(model, "peft_config", None):
        raise ValueError("train_adapter: model must have no adapters, got a PEFT model")
    if model.device.index:
        raise ValueError(
            f"train_adapter: model must be on the first GPU, which Trainer takes, got "
            f"{model.device}: set CUDA_VISIBLE_DEVICES"
        )
    reader = Reader(model, tokenizer, config.max_length)
    identities = {"model": reader.model_identity, "store": store.identity}
    record = json.dumps(asdict(config) | identities)
    set_seed(config.seed)
    lora_model = with_lora(model, "all-linear", config.rank)
    # Otherwise PEFT asks the hub for the model's config at each of Trainer's checkpoints.
    lora_model.save_pretrained = partial(
        lora_model.save_pretrained, save_embedding_layers=False
    )
    with (
        new_folder(path, _FILES, resume=True) as folder,
        out_of_memory_explained(_OUT_OF_MEMORY),
        warnings.catch_warnings(),
    ):
        # PEFT reads a property that transformers has renamed.
        warnings.simplefilter("ignore", FutureWarning)
        training = folder / "training"
        _begin(training, record)
        passages = _tokenized(reader, store, config, training)
        _train(lora_model, passages, config, training)
        lora_model.save_pretrained(folder)
        (folder / RECORD).write_text(record, encoding="utf-8")
        remove_files(folder, _TRAINING)
    return path


def _begin(training: Path, record: str) -> None:
    """Write the record, or compare it with that of the checkpoints that a kill left."""
    training.mkdir(exist_ok=True)
    file = training / RECORD
    if _last_checkpoint(training) and file.read_text(encoding="utf-8") != record:
        raise ValueError(
            f"train_adapter: {training} has checkpoints of other options, or of another model or "
            "datastore: remove it to begin anew"
        )
    file.write_text(record, encoding="utf-8")


def _tokenized(
    reader: Reader, store: Store, config: AdapterConfig, folder: Path
) -> Any:
    """A dataset of the chosen passages' ``input_ids``, in a file in ``folder``."""
    from datasets import Dataset

    def tokenize(batch: dict[str, list[int]]) -> dict[str, list[list[int]]]:
        texts = [store.texts[position] for position in batch["position"]]
        rows = reader.tokenizer(texts, verbose=False)["input_ids"]
        rows = [ids[: reader.window] for ids in rows if len(ids) >= MIN_TOKENS]
        return {"input_ids": rows}

    positions = Dataset.from_dict({"position": range(len(store.texts))})
    if config.passages is not None and config.passages < len(positions):
        positions = positions.shuffle(config.seed).select(range(config.passages))
    passages = positions.map(
        tokenize,
        batched=True,
        remove_columns=["position"],
        cache_file_name=str(folder / "tokens.arrow"),
        load_from_cache_file=False,
        new_fingerprint="tokens",
        desc="Tokenizing",
    )
    if not len(passages):
        raise ValueError(f"train_adapter: store has no passage of {MIN_TOKENS} tokens")
    return passages


def _train(model: Any, passages: Any, config: AdapterConfig, folder: Path) -> None:
    """Train the LoRA, from the last checkpoint on."""
    from transformers import Trainer, TrainingArguments

    lr = config.lr * layer_scale(model)
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch_size,
        learning_rate=lr,
        bf16=config.dtype == "bfloat16",
        use_cpu=model.device.type == "cpu",
        seed=config.seed,
        save_strategy="steps" if config.minutes is None else "no",
        save_steps=_SAVE_STEPS,
        save_total_limit=1,
        logging_steps=10,
        # It goes by transformers' verbosity, which is low in a command.
        disable_tqdm=False,
        # A loss of NaN must show.
        logging_nan_inf_filter=False,
        report_to="none",
    )
    # On a machine of several GPUs Trainer would train on all, with batches as many times larger.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=passages,
        data_collator=_padded,
    )
    if config.minutes is not None:
        trainer.add_callback(_until(config.minutes, lr))
    last = _last_checkpoint(folder)
    if last is not None:
        progress_line(f"going on from {last}")
    result = trainer.train(resume_from_checkpoint=last)
    if not math.isfinite(result.training_loss):
        remove_files(folder.parent, _TRAINING)
        raise NonFiniteLossError("train_adapter: a loss is not finite: lower lr")


def _until(minutes: float, lr: float) -> Any:
    """A callback of `Trainer` that lets the rate fall to 0 in so many minutes, and then ends."""
    from transformers import TrainerCallback

    class Until(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self._begin = perf_counter()

        def on_step_begin(
            self, args: Any, state: Any, control: Any, **trained: Any
        ) -> None:
            for group in trained["optimizer"].param_groups:
                group["lr"] = min(group["lr"], lr * (1 - self._share()))

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop |= self._share() >= 1

        def _share(self) -> float:
            return min(1.0, (perf_counter() - self._begin) / (60 * minutes))

    return Until()


def _padded(rows: Sequence[dict[str, list[int]]]) -> dict[str, Tensor]:
    """A batch. transformers' collator wants a padding token, which many tokenizers lack."""
    ids = [torch.tensor(row["input_ids"]) for row in rows]
    labels = pad_sequence(ids, batch_first=True, padding_value=-100)
    mask = (labels >= 0).long()
    return {"input_ids": labels * mask, "attention_mask": mask, "labels": labels}


def _last_checkpoint(folder: Path) -> str | None:
    """The last checkpoint. Removes one that a kill cut off."""
    from transformers.trainer_utils import get_last_checkpoint

    for checkpoint in folder.glob("checkpoint-*"):
        # Trainer writes its state after the other files.
        if not (checkpoint / "trainer_state.json").exists():
            shutil.rmtree(checkpoint)
    last: str | None = get_last_checkpoint(folder)  # type: ignore[no-untyped-call]
    return last


def adapter_identity(path: str | Path) -> str:
    """SHA-256 over the files of an adapter that PEFT saved, in hexadecimal digits."""
    from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME

    digest = hashlib.sha256()
    for name in (CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME):
        digest.update(Path(path, name).read_bytes())
    return digest.hexdigest()


def read_adapter(path: str | Path, reader: Reader) -> list[tuple[nn.Parameter, Any]]:
    """Read a LoRA that PEFT saved, for `add_lora`.

    Raises:
        InputError: as `read_lora`; or `train_adapter` has trained it with other weights.
    """
    subject = f"adapter {path}"
    with input_errors(subject):
        layers = read_lora(reader.model, Path(path))
        if Path(path, RECORD).exists():
            identity = json.loads(Path(path, RECORD).read_bytes())["model"]
            if identity != reader.model_identity:
                raise ValueError(
                    f"was trained with other weights than {reader.model.name_or_path}'s"
                )
    return layers
