// A block makes one 32 x 32 tile of the lower triangle and its mirror image. Four groups of 64
// threads split every chunk of d among them, 4 x 4 products a thread, so that even a single pool
// gives enough blocks to fill the machine. Arithmetic: csrc/cuda/README.md.
#include <algorithm>

#include "gram.h"
#include "load.cuh"
#include "reduce.cuh"

namespace hullft {
namespace {

constexpr int kTile = 32;
constexpr int kGroups = 4;
constexpr int kGroupThreads = 64;
constexpr int kThreads = kGroups * kGroupThreads;
constexpr int kChunk = 64;                // of d, in shared memory at a time
constexpr int kShare = kChunk / kGroups;  // of a chunk, for one group
constexpr int kSide = 4;                  // of a thread's square of products
constexpr int kSpan = kTile / kSide;

// Cycles of an H100; csrc/cuda/README.md derives them. They say where the one way of making columns
// overtakes the other.
constexpr double kSms = 132;
constexpr double kGramProductsPerCycle = 51;  // of an SM, 40 % of its float32 units
constexpr double kSmBytesPerCycle = 40;       // that one block reads
constexpr double kDeviceBytesPerCycle = 1914;

template <typename S>
struct Operands {
  S a[kTile][kChunk + 1], b[kTile][kChunk + 1];  // one column of padding: no bank conflicts
};

template <typename S>
union GramShared {
  Operands<S> operands;
  S partial[kGroups][kTile][kTile + 1];
};

struct Tile {
  int row, column;  // first row of either operand
};

// Tile t of the lower triangle, counted row by row.
__device__ __forceinline__ Tile tile_of(int64_t t) {
  int64_t i = int64_t((sqrt(8.0 * double(t) + 1.0) - 1.0) / 2.0);
  while (i * (i + 1) / 2 > t) --i;
  while ((i + 1) * (i + 2) / 2 <= t) ++i;
  return {int(i) * kTile, int(t - i * (i + 1) / 2) * kTile};
}

// A row that the query does not see, or a candidate out of range, reads as row 0: its products are
// never used, and the solve reports it.
template <typename T>
__device__ __forceinline__ const T* row_at(const PoolView& pool, int64_t query, int k) {
  int64_t r = k < pool.width ? k : 0;
  if (pool.candidates) r = pool.candidates[query * pool.candidates_stride + r];
  if (r < 0 || r >= pool.n_rows) r = 0;
  return static_cast<const T*>(pool.base) + query * pool.batch_stride + r * pool.row_stride;
}

// Columns start .. start + kChunk of kTile rows, zeros past d.
template <typename S, typename T>
__device__ __forceinline__ void stage(const PoolView& pool, int64_t query, int first, int64_t start,
                                      S (&into)[kTile][kChunk + 1]) {
  constexpr int kStep = kVector<T>;
  for (int v = int(threadIdx.x); v < kTile * kChunk / kStep; v += kThreads) {
    const int r = v / (kChunk / kStep), c = v % (kChunk / kStep) * kStep;
    const T* row = row_at<T>(pool, query, first + r);
    S wide[kStep];
    if (pool.vectors && start + c + kStep <= pool.d) {
      load_wide(row + start + c, wide);
    } else {
#pragma unroll
      for (int j = 0; j < kStep; ++j)
        wide[j] = start + c + j < pool.d ? widen_to<S>(row[start + c + j]) : S(0);
    }
#pragma unroll
    for (int j = 0; j < kStep; ++j) into[r][c + j] = wide[j];
  }
}

template <typename S>
__device__ __forceinline__ void multiply_share(const Operands<S>& x, int group, int i, int j,
                                               S (&sums)[kSide][kSide]) {
#pragma unroll
  for (int c = group * kShare; c < (group + 1) * kShare; ++c) {
    S a[kSide], b[kSide];
#pragma unroll
    for (int s = 0; s < kSide; ++s) a[s] = x.a[i + s * kSpan][c], b[s] = x.b[j + s * kSpan][c];
#pragma unroll
    for (int r = 0; r < kSide; ++r)
#pragma unroll
      for (int s = 0; s < kSide; ++s) sums[r][s] += a[r] * b[s];
  }
}

template <typename S>
__device__ __forceinline__ void write_tile(const GramShared<S>& shared, const Tile& tile, int width,
                                           S* gram) {
  for (int e = int(threadIdx.x); e < kTile * kTile; e += kThreads) {
    const int i = e / kTile, j = e % kTile;
    const auto total = [&shared](int r, int c) {
      S sum = 0;
      for (int g = 0; g < kGroups; ++g) sum += shared.partial[g][r][c];
      return sum;
    };
    if (tile.row + i < width && tile.column + j < width)
      gram[int64_t(tile.row + i) * width + tile.column + j] = total(i, j);
    if (tile.row != tile.column && tile.column + i < width && tile.row + j < width)
      gram[int64_t(tile.column + i) * width + tile.row + j] = total(j, i);
  }
}

template <typename T, typename S>
__global__ void __launch_bounds__(kThreads, 2)
    gram_kernel(PoolView pool, int64_t n_tiles, S* gram) {
  __shared__ GramShared<S> shared;
  const int64_t query = int64_t(blockIdx.x) / n_tiles;
  const Tile tile = tile_of(int64_t(blockIdx.x) % n_tiles);
  if (pool.sizes && tile.row >= pool.sizes[query]) return;
  const int group = int(threadIdx.x) / kGroupThreads, place = int(threadIdx.x) % kGroupThreads;
  const int i = place % kSpan, j = place / kSpan;
  S sums[kSide][kSide] = {};
  for (int64_t start = 0; start < pool.d; start += kChunk) {
    stage<S, T>(pool, query, tile.row, start, shared.operands.a);
    stage<S, T>(pool, query, tile.column, start, shared.operands.b);
    __syncthreads();
    multiply_share(shared.operands, group, i, j, sums);
    __syncthreads();
  }
#pragma unroll
  for (int r = 0; r < kSide; ++r)
#pragma unroll
    for (int s = 0; s < kSide; ++s)
      shared.partial[group][i + r * kSpan][j + s * kSpan] = sums[r][s];
  __syncthreads();
  write_tile(shared, tile, pool.width, gram + query * pool.width * pool.width);
}

template <typename T, typename S>
cudaError_t launch(const PoolView& pool, int64_t n_pools, void* gram, cudaStream_t stream) {
  const int64_t side = (pool.width + kTile - 1) / kTile;
  const int64_t n_tiles = side * (side + 1) / 2;
  if (n_tiles * n_pools > 0x7fffffff) return cudaErrorInvalidValue;
  HULLFT_LAUNCH((gram_kernel<T, S>), dim3(unsigned(n_tiles * n_pools)), dim3(kThreads), 0, stream,
                pool, n_tiles, static_cast<S*>(gram));
  return cudaGetLastError();
}

}  // namespace

bool gram_pays(const PoolView& pool, int64_t batch, int64_t columns) {
  const double k = pool.width, d = double(pool.d), pools = double(n_pools(pool, batch));
  const double gram = pools * k * (k + 32) / 2 * d / (kGramProductsPerCycle * kSms);
  const double rate =
      std::min(kSmBytesPerCycle * std::min(double(batch), kSms), kDeviceBytesPerCycle);
  const double wanted = std::min(k, double(columns));
  return gram < double(batch) * wanted * k * d * double(bytes_of(pool.storage)) / rate;
}

cudaError_t launch_gram(const PoolView& pool, int64_t n_pools, void* gram, cudaStream_t stream) {
  if (n_pools == 0) return cudaSuccess;
  switch (pool.storage) {
    case Storage::kFloat64:
      return launch<double, double>(pool, n_pools, gram, stream);
    case Storage::kBFloat16:
      return launch<BFloat16, float>(pool, n_pools, gram, stream);
    case Storage::kFloat16:
      return launch<Float16, float>(pool, n_pools, gram, stream);
    default:
      return launch<float, float>(pool, n_pools, gram, stream);
  }
}

}  // namespace hullft
