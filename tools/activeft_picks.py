"""Writes tests/data/sift_picks_n50.npz: what activeft picks from 50 real pools, in float64.

Each query is the embedding of a real text, its pool the 200 nearest others in a real corpus, the
texts of tests/data/pools_k200_d384.npz. About two minutes. Wants hullft_ops[bench].
"""

import sys
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import peers  # noqa: E402
from benchmarks.pools import POOLS, real_texts  # noqa: E402

QUERIES, CANDIDATES, PICKS = 50, 200, 50
NOISES = (0.01, 0.2)


def main() -> None:
    torch.set_default_dtype(torch.float64)  # activeft builds its matrices in it
    texts = real_texts()
    queries = torch.arange(QUERIES) * (len(texts) // QUERIES)
    similarity = texts[queries] @ texts.T
    similarity[torch.arange(QUERIES), queries] = -torch.inf  # the query itself
    candidates = similarity.topk(CANDIDATES).indices
    written = {"queries": queries, "candidates": candidates}
    for noise in NOISES:
        found = [
            peers.sift(texts[rows], texts[query], PICKS, noise=noise)[0]
            for rows, query in zip(candidates, queries, strict=True)
        ]
        written[f"picks_{noise}"] = torch.stack(found)
    arrays = {name: tensor.numpy().astype(np.int16) for name, tensor in written.items()}
    np.savez_compressed(POOLS.with_name("sift_picks_n50.npz"), **arrays)


if __name__ == "__main__":
    main()
