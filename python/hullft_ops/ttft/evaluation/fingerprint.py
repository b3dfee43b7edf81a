"""One short name for what a result depends on besides the prompt and the configuration."""

import hashlib
import json

from torch import nn
from transformers import PreTrainedTokenizerBase

from hullft_ops.ttft.datastore import Datastore

# Enough to tell two models apart. Reading all of a large model takes longer than a prompt.
_VALUES_OF_TENSOR = 1024
# Tokenizers with the same vocabulary may merge, normalise and prefix text differently.
_SENTENCE = "Naïve  TOKENS of x_1 = 3.14;\n\tİt's 10,000 日本 🙂"


def fingerprint(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, store: Datastore, seed: int
) -> str:
    """A name for the weights, the tokenizer, the datastore and its embedder, and the seed."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        head = tensor.detach().flatten()[:_VALUES_OF_TENSOR].float().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(head.numpy().tobytes())
    tokens = [sorted(tokenizer.get_vocab().items()), tokenizer(_SENTENCE)["input_ids"]]
    files = [*store.manifest.shards, store.manifest.embeddings]
    sums = [[file.bytes, file.crc32] for file in files]
    about = [tokens, store.manifest.embedder, len(store), seed, sums]
    digest.update(json.dumps(about).encode())
    return digest.hexdigest()[:16]
