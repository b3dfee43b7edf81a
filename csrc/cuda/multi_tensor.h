// Sweeps over the elements of many tensors in one launch, or few: the list travels by value in the
// launch, so that nothing is copied to the device and a launch can be captured in a graph.
#pragma once

#include <driver_types.h>

#include <cstdint>

namespace hullft {

constexpr int kSweepThreads = 256;
// Elements of a block, and of one beside other kernels, whose blocks wait until it ends.
constexpr int kSweepChunk = 16384, kSweepChunkBeside = 4096;

// What a launch may take from CUDA 12.1 on. The simulator sets less, so that few tensors fill one.
#ifndef HULLFT_ARGUMENT_BYTES
#define HULLFT_ARGUMENT_BYTES 32764
#endif

// Entry has a member numel. Some arguments follow the batch.
template <typename Entry>
struct SweepBatch {
  static constexpr int kMax = (HULLFT_ARGUMENT_BYTES - 256) / int(sizeof(Entry) + sizeof(uint32_t));

  Entry entries[kMax];
  uint32_t first_block[kMax + 1];  // of each entry, and their number
  int n;
  int chunk;  // elements of a block
};

// launch(batch, n_blocks) for batches that hold every entry with elements once, until an error.
template <typename Entry, typename Launch>
cudaError_t for_each_batch(const Entry* entries, int64_t n, int chunk, const Launch& launch) {
  constexpr uint32_t kMaxBlocks = 0x7fffffff;
  SweepBatch<Entry> batch;  // 32 KB that need no zeros
  batch.n = 0, batch.chunk = chunk, batch.first_block[0] = 0;
  const auto flush = [&] {
    const cudaError_t status = launch(batch, batch.first_block[batch.n]);
    batch.n = 0;
    return status;
  };
  for (int64_t i = 0; i < n; ++i) {
    if (entries[i].numel == 0) continue;
    const int64_t blocks = (entries[i].numel + chunk - 1) / chunk;
    const bool full = batch.n == SweepBatch<Entry>::kMax ||
                      (batch.n && batch.first_block[batch.n] + blocks > kMaxBlocks);
    if (full) {
      const cudaError_t status = flush();
      if (status != cudaSuccess) return status;
    }
    batch.entries[batch.n] = entries[i];
    batch.first_block[batch.n + 1] = batch.first_block[batch.n] + uint32_t(blocks);
    ++batch.n;
  }
  return batch.n ? flush() : cudaSuccess;
}

}  // namespace hullft
