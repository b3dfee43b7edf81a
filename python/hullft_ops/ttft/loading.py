"""What commands run on, loaded with errors that a user can act on."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hullft_ops._terminal import show
from hullft_ops.ttft import Datastore, Embedder, load_embedder, tiny_lm_path
from hullft_ops.ttft.allocation import keep_freed_memory
from hullft_ops.ttft.corpus import Corpus, installed_corpus, jsonl_corpus
from hullft_ops.ttft.out_of_memory import is_out_of_memory

_NAMED_LINES = 3
_NAMED_WEIGHTS = 3
# What the libraries raise for a directory that holds no model, half of one or another's weights.
_NOT_LOADED = (OSError, RuntimeError, SafetensorError, ValueError)


class InputError(ValueError):
    """A command cannot run on what it is given; the message says why."""


def load_corpus(file: Path | None, log: Console) -> Corpus:
    """The corpus in a JSONL file, or that of the installed packages; says what it left out.

    Raises:
        InputError: the file cannot be read, or there is no text.
    """
    try:
        corpus = jsonl_corpus(file) if file else installed_corpus()
    except OSError as error:
        raise InputError(f"corpus {file}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"corpus {error}") from error
    if corpus.malformed:
        named = "; ".join(corpus.malformed[:_NAMED_LINES])
        more = "; ..." if len(corpus.malformed) > _NAMED_LINES else ""
        lines = f"{len(corpus.malformed)} lines left out ({named}{more})"
        show(log, f"{corpus.name}: {lines}")
    return corpus


def checked_device(name: str) -> torch.device:
    """The device of that name, for a model.

    Raises:
        InputError: it is none that models run on here, or not there.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"device {name}: {_first_line(error)}") from error
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device {name}: must be cpu, cuda or cuda:N")
    found = torch.cuda.device_count() if device.type == "cuda" else 1
    if (device.index or 0) >= found:
        kind = device.type.upper()
        raise InputError(f"device {name}: torch {torch.__version__} finds {found} {kind} devices")
    return device


def load_model(
    name: str | None, device: torch.device, *, allow_missing_weights: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model in float32 and its tokenizer, by name or directory; the tiny model when None.

    The process keeps the memory that its passes free, see `keep_freed_memory`.

    Args:
        name: name or directory.
        device: where the model shall be.
        allow_missing_weights: take random weights for those that the checkpoint lacks, and leave
            out those that the configuration has no place for.

    Raises:
        InputError: there is no such model, transformers cannot load it, or its weights are not
            those of its configuration.
    """
    keep_freed_memory()
    if name is not None:
        _check_directory("model", name)
    source = name if name is not None else tiny_lm_path()
    with _loading(f"model {source}"):
        # Weights in any other format would be unpickled.
        found: Any = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        model: PreTrainedModel = found[0]
        tokenizer = _tokenizer(source)
    if not allow_missing_weights:
        _check_weights(f"model {source}", found[1])
    # A model is moved in place; the type of what `to` returns is lost in its decorators.
    model.to(device)  # type: ignore[arg-type]
    return model, tokenizer


def open_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of that name or in that directory.

    Raises:
        InputError: there is no such tokenizer, or transformers cannot load it.
    """
    _check_directory("tokenizer", name)
    with _loading(f"tokenizer {name}"):
        return _tokenizer(name)


def open_embedder(name: str) -> Embedder:
    """The embedder of that name or in that directory.

    Raises:
        InputError: there is no such embedder, or sentence-transformers cannot load it.
    """
    _check_directory("embedder", name)
    with _loading(f"embedder {name}"):
        return load_embedder(name)


def open_or_build(
    corpus: Corpus, embedder: Embedder, path: Path, log: Console
) -> tuple[Datastore, bool]:
    """The corpus's datastore at ``path``, and whether it was there already.

    Raises:
        InputError: something that is not a datastore is in its place.
    """
    try:
        store = Datastore.open(path)
    except FileNotFoundError:
        show(log, f"no datastore for this corpus at {path}: building it")
    except ValueError as error:
        show(log, f"{error}: building it again")
    else:
        show(log, f"datastore of {len(store)} passages found: {path}")
        return store, True
    texts = (passage.text for passage in corpus.store)
    try:
        return Datastore.build(texts, embedder, path, overwrite=True), False
    except (OSError, ValueError) as error:
        raise InputError(f"datastore {path}: {_first_line(error)}") from error


def _check_weights(what: str, loaded: Mapping[str, Collection[str]]) -> None:
    """transformers leaves out what a model ties to others, or does without."""
    found = {kind: sorted(loaded[f"{kind}_keys"]) for kind in ("missing", "unexpected")}
    said = [
        f"{len(names)} {kind} ({', '.join(names[:_NAMED_WEIGHTS])}"
        f"{', ...' if len(names) > _NAMED_WEIGHTS else ''})"
        for kind, names in found.items()
        if names
    ]
    if said:
        raise InputError(
            f"{what}: its weights are not those of its configuration: {', '.join(said)}; "
            "--allow-missing-weights loads it all the same"
        )


def _tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        source, trust_remote_code=False
    )
    return tokenizer


def _check_directory(what: str, name: str) -> None:
    # The libraries take a path that is not there for a name on the hub, and say so at length.
    if name.startswith(("/", ".", "~")) and not Path(name).is_dir():
        raise InputError(f"{what} {name}: no such directory")


@contextmanager
def _loading(what: str) -> Iterator[None]:
    try:
        yield
    except _NOT_LOADED as error:
        if is_out_of_memory(error):
            raise
        # The libraries advise to pass that argument, which no command has.
        if "trust_remote_code" in str(error):
            raise InputError(
                f"{what}: it needs code that ships with it, which is not run"
            ) from error
        raise InputError(f"{what}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
