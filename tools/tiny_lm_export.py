"""Write the tiny model as a folder that AutoModel and AutoTokenizer load."""

import json
import tempfile
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel

CONTEXT = 512
VOCABULARY = 4096
END_OF_TEXT = "<|endoftext|>"
END_OF_TEXT_ID = 0


def train_tokenizer(texts: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def new_model() -> GPT2LMHeadModel:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_positions=CONTEXT,
            n_embd=256,
            n_layer=6,
            n_head=8,
            activation_function="gelu_pytorch_tanh",
            # Without dropout, finetuning at test time is repeatable.
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=END_OF_TEXT_ID,
            eos_token_id=END_OF_TEXT_ID,
        )
    )


def _half_weights(model: GPT2LMHeadModel) -> dict[str, torch.Tensor]:
    """The output layer is the embedding, and is stored once."""
    state = model.state_dict()
    del state["lm_head.weight"]
    return {name: weight.half() for name, weight in state.items()}


def export(model: GPT2LMHeadModel, tokenizer: Tokenizer, out: Path) -> None:
    """Files are replaced one by one and whole, so a reader never meets half a file."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as name:
        folder = Path(name)
        # The configuration keeps float32: half precision is too coarse to finetune in.
        model.save_pretrained(folder, state_dict=_half_weights(model))
        tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": CONTEXT,
            "bos_token": END_OF_TEXT,
            "eos_token": END_OF_TEXT,
            "clean_up_tokenization_spaces": False,
        }
        (folder / "tokenizer_config.json").write_text(
            json.dumps(settings, indent=2) + "\n"
        )
        for path in folder.iterdir():
            # safetensors writes files that only their owner can read.
            path.chmod(0o644)
            path.replace(out / path.name)
