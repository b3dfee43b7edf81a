"""Gradient reuse on a model that FSDP2 shards over processes.

    torchrun --nproc-per-node 2 examples/fsdp2.py

Each process holds its share of every parameter and of Adam's moments, and reads its share of each
passage. A gradient is the mean over the processes, and all take the same steps with it. As in
plain_loop.py the rows of a matrix are the embeddings; a passage is eight noisy copies of its row.
"""

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

import hullft_ops

STEPS = 20
REFRESH = 2


def main() -> None:
    dist.init_process_group("gloo")
    rank, processes = dist.get_rank(), dist.get_world_size()
    # All processes draw the same numbers, so they choose the same passages.
    torch.manual_seed(0)
    pool = nn.functional.normalize(torch.randn(200, 64), dim=-1)
    query = nn.functional.normalize(pool[:4].mean(0, keepdim=True), dim=-1)
    passages = pool[:, None] + 0.01 * torch.randn(200, 8, 64)
    selection = hullft_ops.fw_select(pool, query[0], STEPS, variant="corrective")
    size = int(selection.support_size)

    model = nn.Sequential(nn.Linear(64, 32), nn.GELU(), nn.Linear(32, 64))
    for layer in (model[0], model[2]):
        fully_shard(layer)
    fully_shard(model)
    # After sharding: the parameters are DTensors now, and so are the moments.
    optimizer = hullft_ops.ReplayAdam(model.parameters(), lr=1e-3)
    before = nn.functional.mse_loss(model(query), query).item()
    passes = 0
    for index, count in zip(
        selection.indices[:size].tolist(), selection.counts[:size].tolist(), strict=True
    ):
        share = passages[index].chunk(processes)[rank]
        for done in range(0, count, REFRESH):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(share), share).backward()
            # Each process updates its own shards, without communication.
            optimizer.step(repeats=min(REFRESH, count - done))
            passes += 1
    after = nn.functional.mse_loss(model(query), query).item()

    if rank == 0:
        print(f"{processes} processes, {STEPS} steps with {passes} gradients")
        print(f"loss on the query: {before:.4f} before, {after:.4f} after")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
