"""Training one LoRA on a whole datastore."""

import hashlib
import json
import math
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from inspect import isfunction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hullft_ops.ttft.files import check_output, new_folder
from hullft_ops.ttft.language_model import LanguageModel
from hullft_ops.ttft.loss import NonFiniteLossError
from hullft_ops.ttft.models.memory import out_of_memory_explained
from hullft_ops.ttft.models.weights import layer_scale
from hullft_ops.ttft.restore import unwrapped
from hullft_ops.ttft.store.base import Store
from hullft_ops.ttft.techniques.adapter import RECORD, quiet, sharing_weights
from hullft_ops.ttft.terminal import progress, progress_line
from hullft_ops.ttft.training import MIN_TOKENS
from hullft_ops.ttft.validation import options_class

_SAVE_STEPS = 100
_OUT_OF_MEMORY = "train_adapter: out of memory: lower batch_size or max_length"


@options_class
class AdapterConfig:
    """How `train_adapter` trains a LoRA."""

    rank: PositiveInt = 16
    """Rank of the matrices that are added to every linear layer but the head."""

    passages: PositiveInt | None = None
    """How many passages to train on, drawn at random; None for all."""

    epochs: PositiveInt = 1
    """How often to train on each passage."""

    lr: PositiveFloat = 5e-3
    """Learning rate of the first step, as a share of the median root mean square of the layers'
    weights; it falls linearly to 0 over the passages."""

    batch_size: PositiveInt = 1
    """Passages for each optimizer step."""

    max_length: PositiveInt | None = None
    """Tokens to cut passages to; None for the model's window."""

    dtype: Literal["bfloat16"] | None = None
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
    is. Training runs in eval mode, without dropout or gradient checkpointing.

    Args:
        model: a causal language model without adapters.
        tokenizer: the model's tokenizer.
        store: the passages. Passages of fewer than 2 tokens are left out.
        path: the folder to make, for ``TTFTConfig.adapter``. It appears by a rename.
        options: fields of `AdapterConfig`.

    Returns:
        ``path``.

    Raises:
        TypeError, ValueError: an option is wrong; the model has adapters or is not causal; no
            passage has 2 tokens; or another process trains.
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
    language_model = LanguageModel(model, tokenizer, config.max_length)
    identities = {"model": language_model.model_identity, "store": store.identity}
    record = json.dumps(asdict(config) | identities)
    set_seed(config.seed)
    lora_model = with_lora(model, config.rank)
    # Otherwise PEFT asks the hub for the model's config at each of Trainer's checkpoints.
    lora_model.save_pretrained = partial(
        lora_model.save_pretrained, save_embedding_layers=False
    )
    with (
        new_folder(path, resume=True) as folder,
        out_of_memory_explained(_OUT_OF_MEMORY),
        # PEFT reads a property that transformers has renamed.
        warnings.catch_warnings(action="ignore", category=FutureWarning),
    ):
        # Another training has no checkpoint of this one.
        digest = hashlib.sha256(record.encode()).hexdigest()
        _train(
            lora_model,
            _tokenized(language_model, store, config),
            config,
            folder / f"training_{digest[:16]}",
        )
        lora_model.save_pretrained(folder)
        (folder / RECORD).write_text(record, encoding="utf-8")
        for training in folder.glob("training_*"):
            shutil.rmtree(training)
    return path


def with_lora(model: "PreTrainedModel", rank: int) -> Any:
    """A PEFT model with a new LoRA around every linear layer but the head."""
    from peft import LoraConfig, get_peft_model

    # It would run the model, not its copy.
    if isfunction(vars(unwrapped(model)).get("forward")):
        raise ValueError("model must not have a forward of its own, as torch.compile's")
    # A router that returns a tuple, or a product in groups, is more than a linear layer.
    others = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and type(module).forward is not nn.Linear.forward
    ]
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules="all-linear",
        exclude_modules=others,
        task_type="CAUSAL_LM",
    )
    with quiet():
        return get_peft_model(sharing_weights(model), config)


def _tokenized(
    language_model: LanguageModel, store: Store, config: AdapterConfig
) -> list[Tensor]:
    """The tokens of the chosen passages, int32 ``[T]`` each."""
    total = len(store.texts)
    chosen: Any = range(total)
    if config.passages is not None and config.passages < total:
        chosen = np.random.default_rng(config.seed).permutation(total)
        chosen = chosen[: config.passages].tolist()
    passages = []
    for position in progress(chosen, desc="tokenizing", unit="passage"):
        ids = language_model.passage_ids(store.texts[position], with_special=True)
        if len(ids) >= MIN_TOKENS:
            passages.append(
                torch.tensor(ids[: language_model.window], dtype=torch.int32)
            )
    if not passages:
        raise ValueError(f"train_adapter: store has no passage of {MIN_TOKENS} tokens")
    return passages


def _train(model: Any, passages: Any, config: AdapterConfig, folder: Path) -> None:
    """Train the LoRA, from the last checkpoint in the folder on."""
    from transformers import Trainer, TrainingArguments

    folder.mkdir(exist_ok=True)
    # In train mode RWKV scales the weights that it shares with the caller's model.
    model.train = lambda *_: nn.Module.train(model, False)
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch_size,
        learning_rate=config.lr * layer_scale(model),
        bf16=config.dtype == "bfloat16",
        use_cpu=model.device.type == "cpu",
        seed=config.seed,
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
        compute_loss_func=_loss,
    )
    last = _last_checkpoint(folder)
    if last is not None:
        progress_line(f"going on from {last}")
    result = trainer.train(resume_from_checkpoint=last)
    if not math.isfinite(result.training_loss):
        shutil.rmtree(folder)
        raise NonFiniteLossError("train_adapter: a loss is not finite: lower lr")


def _padded(passages: Sequence[Tensor]) -> dict[str, Tensor]:
    """A batch. transformers' collator wants a padding token, which many tokenizers lack."""
    ids = [passage.long() for passage in passages]
    labels = pad_sequence(ids, batch_first=True, padding_value=-100)
    mask = (labels >= 0).long()
    return {"input_ids": labels * mask, "attention_mask": mask, "labels": labels}


def _loss(output: Any, labels: Tensor, **_: Any) -> Tensor:
    """The mean over a batch's next tokens. BART's kind compares each token with itself."""
    return cross_entropy(
        output.logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten()
    )


def _last_checkpoint(folder: Path) -> str | None:
    """The last checkpoint. Removes one that a kill cut off."""
    from transformers.trainer_utils import get_last_checkpoint

    for checkpoint in folder.glob("checkpoint-*"):
        # Trainer writes its state after the other files.
        if not (checkpoint / "trainer_state.json").exists():
            shutil.rmtree(checkpoint)
    return get_last_checkpoint(folder)  # type: ignore[no-any-return, no-untyped-call]
