"""Writing a tiny Llama as GGUF, the way llama.cpp's converter does."""

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode

BYTES = list(bytes_to_unicode().values())
MERGES = [("t", "h"), ("th", "e"), ("o", "n"), ("a", "t"), ("c", "at")]
TOKENS = [*BYTES, *("".join(pair) for pair in MERGES), "<s>", "</s>"]
CONTEXT, LAYERS, HEADS = 64, 2, 2
ENDS = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}
BLOCK = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
BLOCK |= {f"self_attn.{x}_proj": f"attn_{x}" for x in "qkv"} | {
    "self_attn.o_proj": "attn_output"
}
BLOCK |= {f"mlp.{x}_proj": f"ffn_{x}" for x in ("gate", "up", "down")}


def tiny_llama(*, tied: bool = False) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(TOKENS),
        max_position_embeddings=CONTEXT,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        tie_word_embeddings=tied,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)

    return model


def gguf_name(name: str) -> str:
    words = name.removeprefix("model.").removesuffix(".weight").split(".")
    if words[0] != "layers":
        return f"{ENDS[words[0]]}.weight"

    return f"blk.{words[1]}.{BLOCK['.'.join(words[2:])]}.weight"


def _turned(weights: np.ndarray) -> np.ndarray:
    """Rows of queries and keys, in the order of llama.cpp's rotary embedding."""
    halves = weights.reshape(HEADS, 2, -1, weights.shape[1])
    return halves.swapaxes(1, 2).reshape(weights.shape)


def write_gguf(
    path: Path,
    model: LlamaForCausalLM,
    *,
    architecture: str = "llama",
    tokenizer: str = "gpt2",
    without: tuple[str, ...] = (),
    more: Callable[[gguf.GGUFWriter], None] = lambda writer: None,
) -> Path:
    """Write the model in float32."""
    writer = gguf.GGUFWriter(path, architecture)
    config = model.config
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // HEADS)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model(tokenizer)
    writer.add_token_list(TOKENS)
    writer.add_token_types([1] * (len(TOKENS) - 2) + [3, 3])
    writer.add_token_merges([" ".join(pair) for pair in MERGES])
    writer.add_bos_token_id(len(TOKENS) - 2)
    writer.add_eos_token_id(len(TOKENS) - 1)

    for name, parameter in model.named_parameters():
        if name in without:
            continue

        weights = parameter.detach().numpy()
        if "q_proj" in name or "k_proj" in name:
            weights = _turned(weights)

        writer.add_tensor(gguf_name(name), weights)

    more(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
