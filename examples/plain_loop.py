"""Gradient reuse in a plain PyTorch loop: select, then train with fewer passes than steps.

    python examples/plain_loop.py

In this toy the rows of a matrix are both the texts and their embeddings.
"""

import torch
from torch import nn

import hullft_ops

STEPS = 20
REFRESH = 2


def main() -> dict[str, float]:
    torch.manual_seed(0)
    pool = nn.functional.normalize(torch.randn(200, 64), dim=-1)
    query = nn.functional.normalize(pool[:4].mean(0), dim=-1)

    # The rows that reconstruct the query, and the number of steps on each.
    selection = hullft_ops.fw_select(pool, query, STEPS, variant="corrective")
    size = int(selection.support_size)

    model = nn.Sequential(nn.Linear(64, 32), nn.GELU(), nn.Linear(32, 64))
    before = nn.functional.mse_loss(model(query), query).item()
    optimizer = hullft_ops.ReplayAdam(model.parameters(), lr=1e-3)
    passes = 0
    for index, count in zip(
        selection.indices[:size].tolist(), selection.counts[:size].tolist(), strict=True
    ):
        for done in range(0, count, REFRESH):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(pool[index]), pool[index]).backward()
            # Up to REFRESH Adam steps with this gradient, in one sweep over memory.
            optimizer.step(repeats=min(REFRESH, count - done))
            passes += 1
    after = nn.functional.mse_loss(model(query), query).item()

    print(f"{size} of {len(pool)} rows, {STEPS} steps with {passes} gradients")
    print(f"loss on the query: {before:.4f} before, {after:.4f} after")
    return {"passes": passes, "before": before, "after": after}


if __name__ == "__main__":
    main()
