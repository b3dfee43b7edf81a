"""Test-time finetuning of LoRA adapters on a model of Llama's architecture.

    python examples/lora_llama.py

The model is small and has random weights, and the tokenizer belongs to hullft_ops's toy model.
Replace both by your own.
"""

import tempfile
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from hullft_ops.ttft import (
    Datastore,
    TestTimeFinetuner,
    load_embedder,
    score_text,
    tiny_lm_path,
)

TEXTS = [f"def area_{n}(side):\n    return {n} * side * side\n" for n in range(40)]
PROMPT = "def area_99(side):\n    return 99"


def main() -> dict[str, float]:
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(tiny_lm_path(), trust_remote_code=False)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
    )
    lora = LoraConfig(
        r=8,
        target_modules=["q_proj", "v_proj", "up_proj", "down_proj"],
        # A head with random weights has to learn too.
        modules_to_save=["lm_head"],
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(LlamaForCausalLM(config), lora)
    embedder = load_embedder()
    with tempfile.TemporaryDirectory() as folder:
        store = Datastore.build(TEXTS, embedder, Path(folder) / "store")
        # Only what PEFT trains is changed and restored. The rate is a share of the
        # weights, which are random and small.
        ttft = TestTimeFinetuner(model, tokenizer, store, embedder, n_select=20, lr=0.3)
        before = score_text(model, tokenizer, PROMPT).value
        with ttft.adapted(PROMPT) as adaptation:
            adapted = score_text(model, tokenizer, PROMPT).value
        restored = score_text(model, tokenizer, PROMPT).value

    trainable, total = model.get_nb_trainable_parameters()
    print(f"{trainable} of {total} parameters trained")
    print(f"{adaptation.total_steps} steps with {adaptation.passes} gradients")
    print(
        f"bits per byte: {before:.3f} before, {adapted:.3f} adapted, {restored:.3f} restored"
    )
    return {"before": before, "adapted": adapted, "restored": restored}


if __name__ == "__main__":
    main()
