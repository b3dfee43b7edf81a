"""What a result depends on besides the prompt and the configuration, as one short name."""

import hashlib
import json

from torch import nn

from hullft_ops.ttft.datastore import Datastore

# Enough to tell two apart; reading all of a large model would take longer than a prompt.
_VALUES_OF_TENSOR = 1024


def fingerprint(model: nn.Module, store: Datastore, seed: int) -> str:
    """Of the model's weights, of the datastore's files and embedder, and of the seed."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        head = tensor.detach().flatten()[:_VALUES_OF_TENSOR].float().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(head.numpy().tobytes())
    files = [*store.manifest.shards, store.manifest.embeddings]
    about = [store.manifest.embedder, len(store), seed, *([f.bytes, f.crc32] for f in files)]
    digest.update(json.dumps(about).encode())
    return digest.hexdigest()[:16]
