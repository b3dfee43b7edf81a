#include "accumulate.h"
#include "sweep.cuh"

namespace hullft {
namespace {

// R is float64 as soon as cache or gradient is, float32 otherwise.
template <typename T, typename R>
__global__ void __launch_bounds__(kSweepThreads, 2)
    accumulate_kernel(SweepBatch<AccumulateEntry> batch, Storage grad_type, R alpha, R beta) {
  const SweepPlace place = sweep_place(batch);
  const AccumulateEntry& entry = batch.entries[place.entry];
  T* const cache = static_cast<T*>(entry.cache);
  for (int64_t tile = 0; tile < batch.chunk && place.start + tile < entry.numel;
       tile += kSweepTile<R>) {
    const SweepPieces<T, R> pieces(place.start + tile, entry.numel);
    SweepVector<R> sum;
    load_sweep(pieces, entry.grad, grad_type, sum);
#pragma unroll
    for (int j = 0; j < kSweepVector<R>; ++j) sum[j] *= alpha;
    if (beta != R(0)) {  // else the cache may hold anything, NaN too
      SweepVector<R> before;
      load_sweep(pieces, cache, before);
#pragma unroll
      for (int j = 0; j < kSweepVector<R>; ++j) sum[j] += beta * before[j];
    }
    store_sweep(pieces, cache, sum);
  }
}

template <typename T, typename R>
cudaError_t launch(const AccumulateEntry* entries, int64_t n, Storage grad, double alpha,
                   double beta, cudaStream_t stream) {
  return for_each_batch(
      entries, n, kSweepChunk, [&](const SweepBatch<AccumulateEntry>& batch, uint32_t n_blocks) {
        HULLFT_LAUNCH((accumulate_kernel<T, R>), dim3(n_blocks), dim3(kSweepThreads), 0, stream,
                      batch, grad, R(alpha), R(beta));
        return cudaGetLastError();
      });
}

}  // namespace

cudaError_t launch_accumulate(const AccumulateEntry* entries, int64_t n, Storage cache,
                              Storage grad, double alpha, double beta, cudaStream_t stream) {
  return for_storage(cache, [&](auto x) {
    using T = decltype(x);
    return grad == Storage::kFloat64
               ? launch<T, double>(entries, n, grad, alpha, beta, stream)
               : launch<T, Arithmetic<T>>(entries, n, grad, alpha, beta, stream);
  });
}

}  // namespace hullft
