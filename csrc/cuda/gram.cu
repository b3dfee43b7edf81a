// Gram matrices of few rows, whose tiles are spread over the device, and of float64. Arithmetic:
// csrc/cuda/README.md.
#include "early_launch.cuh"
#include "gram.h"
#include "gram_slice.cuh"
#include "gram_tile.cuh"

namespace hullft {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;

// Moves the elements of a vector down by one; x becomes the last.
template <typename T>
__device__ __forceinline__ void push(uint32_t (&words)[4], T x) {
  T values[kVector<T>];
  memcpy(values, words, sizeof values);
#pragma unroll
  for (int j = 0; j + 1 < kVector<T>; ++j) values[j] = values[j + 1];
  values[kVector<T> - 1] = x;
  memcpy(words, values, sizeof values);
}

// 16 bytes of each row from element `start` on. Past the `left` elements of a row they are zeros.
// `whole`: all elements are there, and aligned.
template <typename T, int kRows>
__device__ __forceinline__ void load_rows(const T* const (&rows)[kRows], int64_t start,
                                          int64_t left, bool whole, uint32_t (&words)[kRows][4]) {
  if (whole) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const uint4 raw = __ldg(reinterpret_cast<const uint4*>(rows[r] + start));
      memcpy(words[r], &raw, sizeof raw);
    }
  } else {
#pragma unroll 1  // all at once take too many registers (nvcc 13.0)
    for (int j = 0; j < kVector<T>; ++j)
#pragma unroll
      for (int r = 0; r < kRows; ++r) push(words[r], j < left ? rows[r][start + j] : T{});
  }
}

// A block makes one tile. Its warps take the slices in passes, two slices a warp, straight from
// global memory: eight loads of 16 bytes of a lane are under way.
constexpr int kWarpSlices = 2;  // of a pass
constexpr int kPass = kWarps * kWarpSlices;
constexpr int kTileRows = 4;  // of a lane: two of either operand

template <typename T>
struct PassWords {
  uint32_t words[kWarpSlices][kTileRows][4];

  __device__ __forceinline__ void load(const T* const (&rows)[kTileRows], const PoolView& pool,
                                       int64_t slice, int t) {
#pragma unroll
    for (int s = 0; s < kWarpSlices; ++s) {
      const int64_t start = (slice + s * kWarps) * kSlice<T>;
      const bool whole = pool.vectors && start + kSlice<T> <= pool.d;
      load_rows(rows, start, pool.d - start - t * kVector<T>, whole, words[s]);
    }
  }
};

using SliceTotals = float[kTileSide][kTileSide + 1];

template <typename T>
__device__ __forceinline__ void store_slice(const uint32_t (&words)[kTileRows][4], int g, int t,
                                            SliceTotals& totals) {
  Operand<T, 2> a;
  a.set_row(0, words[0]);
  a.set_row(1, words[1]);
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    Operand<T, 1> b;
    b.set_row(0, words[2 + n]);
    float products[4] = {};
    add_slice(a, b, products);
#pragma unroll
    for (int c = 0; c < 4; ++c)
      totals[g + c / 2 * kFragmentRows][n * kFragmentRows + 2 * t + c % 2] = products[c];
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 2)
    gram_spread_kernel(GramProblem problem, Tiles tiles) {
  __shared__ SliceTotals totals[2][kPass];  // of this pass and the last one
  let_next_kernel_start();
  const PoolView& pool = problem.pool;
  const int64_t b = int64_t(blockIdx.x) / tiles.all;
  const Tile tile = tile_at(tiles, int64_t(blockIdx.x) % tiles.all, kTileSide);
  if (!wants_tile(problem, b, tile, kTileSide)) return;
  const int warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp;
  const int g = lane / kRowLanes, t = lane % kRowLanes;
  const T* rows[kTileRows];
#pragma unroll
  for (int r = 0; r < kTileRows; ++r) {
    const int first = r < 2 ? tile.row : tile.column;
    const int k = first + r % 2 * kFragmentRows + g;
    rows[r] = opaque(row_at<T>(problem, b, k) + t * kVector<T>);
  }
  const int i = int(threadIdx.x) / kTileSide, j = int(threadIdx.x) % kTileSide;
  const int64_t n_slices = slices_of<T>(pool.d);
  float total = 0;
  PassWords<T> next = {};
  next.load(rows, pool, warp, t);
  for (int64_t first = 0, half = 0; first < n_slices; first += kPass, half = 1 - half) {
#pragma unroll
    for (int s = 0; s < kWarpSlices; ++s)
      store_slice<T>(next.words[s], g, t, totals[half][warp + s * kWarps]);
    if (first + kPass < n_slices) next.load(rows, pool, first + kPass + warp, t);
    __syncthreads();
    for (int s = 0; s < kPass && first + s < n_slices; ++s) total += totals[half][s][i][j];
  }
  GramOutputs<float>(problem, b).put(tile.row + i, tile.column + j, total);
}

// float64, on the ordinary units: four groups of 64 threads split every chunk of d, 4 x 4 products
// a thread.
constexpr int kWideSide = 32;
constexpr int kGroups = 4;
constexpr int kGroupThreads = kThreads / kGroups;
constexpr int kChunk = 64;                // of d, in shared memory at a time
constexpr int kShare = kChunk / kGroups;  // of a chunk, for one group
constexpr int kSide = 4;                  // of a thread's square of products
constexpr int kSpan = kWideSide / kSide;

struct Operands {
  double a[kWideSide][kChunk + 1], b[kWideSide][kChunk + 1];  // padded: no bank conflicts
};

union PlainShared {
  Operands operands;
  double shares[kGroups][kWideSide][kWideSide + 1];
};

__device__ __forceinline__ void multiply_share(const Operands& x, int group, int i, int j,
                                               double (&sums)[kSide][kSide]) {
#pragma unroll
  for (int c = group * kShare; c < (group + 1) * kShare; ++c) {
    double a[kSide], b[kSide];
#pragma unroll
    for (int s = 0; s < kSide; ++s) a[s] = x.a[i + s * kSpan][c], b[s] = x.b[j + s * kSpan][c];
#pragma unroll
    for (int r = 0; r < kSide; ++r)
#pragma unroll
      for (int s = 0; s < kSide; ++s) sums[r][s] += a[r] * b[s];
  }
}

// A warp reads every eighth row of both operands, all of a chunk before it stores the first.
__global__ void __launch_bounds__(kThreads, 2)
    gram_float64_kernel(GramProblem problem, Tiles tiles) {
  __shared__ PlainShared shared;
  let_next_kernel_start();
  const PoolView& pool = problem.pool;
  const int64_t b = int64_t(blockIdx.x) / tiles.all;
  const Tile tile = tile_at(tiles, int64_t(blockIdx.x) % tiles.all, kWideSide);
  if (!wants_tile(problem, b, tile, kWideSide)) return;
  const int warp = int(threadIdx.x) / kWarp, column = int(threadIdx.x) % kWarp * kVector<double>;
  constexpr int kRows = kWideSide / kWarps;  // of each operand, for a warp
  const double* rows[2 * kRows];
#pragma unroll
  for (int r = 0; r < 2 * kRows; ++r) {
    const int first = r < kRows ? tile.row : tile.column - kWideSide;
    rows[r] = opaque(row_at<double>(problem, b, first + r * kWarps + warp) + column);
  }
  const int group = int(threadIdx.x) / kGroupThreads, place = int(threadIdx.x) % kGroupThreads;
  const int i = place % kSpan, j = place / kSpan;
  double sums[kSide][kSide] = {};
  for (int64_t start = 0; start < pool.d; start += kChunk) {
    uint32_t words[2 * kRows][4] = {};
    const bool whole = pool.vectors && start + kChunk <= pool.d;
    load_rows(rows, start, pool.d - start - column, whole, words);
#pragma unroll
    for (int r = 0; r < 2 * kRows; ++r) {
      auto& operand = r < kRows ? shared.operands.a : shared.operands.b;
      memcpy(&operand[r % kRows * kWarps + warp][column], words[r], sizeof words[r]);
    }
    __syncthreads();
    multiply_share(shared.operands, group, i, j, sums);
    __syncthreads();
  }
#pragma unroll
  for (int r = 0; r < kSide; ++r)
#pragma unroll
    for (int s = 0; s < kSide; ++s) shared.shares[group][i + r * kSpan][j + s * kSpan] = sums[r][s];
  __syncthreads();
  const GramOutputs<double> out(problem, b);
  for (int e = int(threadIdx.x); e < kWideSide * kWideSide; e += kThreads) {
    double total = 0;
    for (int s = 0; s < kGroups; ++s) total += shared.shares[s][e / kWideSide][e % kWideSide];
    out.put(tile.row + e / kWideSide, tile.column + e % kWideSide, total);
  }
}

// A block a tile. The tiles of 2^31 blocks, 1 KB of products each, have no memory on any device.
cudaError_t launch_tiles(void (*kernel)(GramProblem, Tiles), const GramProblem& problem, int side,
                         cudaStream_t stream) {
  const Tiles tiles = tiles_of(problem.pool.width, problem.queries, side);
  HULLFT_LAUNCH(kernel, dim3(unsigned(tiles.all * problem.pools)), dim3(kThreads), 0, stream,
                problem, tiles);
  return cudaGetLastError();
}

auto spread_kernel_of(Storage storage) {
  switch (storage) {
    case Storage::kBFloat16:
      return gram_spread_kernel<BFloat16>;
    case Storage::kFloat16:
      return gram_spread_kernel<Float16>;
    default:
      return gram_spread_kernel<float>;
  }
}

}  // namespace

cudaError_t launch_gram(const GramProblem& problem, int64_t sms, cudaStream_t stream) {
  if (problem.pools == 0) return cudaSuccess;
  const Storage storage = problem.pool.storage;
  if (storage == Storage::kFloat64)
    return launch_tiles(gram_float64_kernel, problem, kWideSide, stream);
  const GramPlan plan = plan_gram(problem.pool, problem.pools, problem.queries, sms);
  if (plan.warp_tiles) return launch_gram_blocks(problem, plan.warp_tiles, stream);
  return launch_tiles(spread_kernel_of(storage), problem, kTileSide, stream);
}

cudaError_t launch_gram(const PoolView& pool, int64_t pools, void* gram, cudaStream_t stream) {
  LaunchLimits limits{};
  const cudaError_t status = device_limits(&limits);
  if (status != cudaSuccess) return status;
  return launch_gram({pool, pools, {nullptr, 0}, 0, gram, nullptr}, limits.sms, stream);
}

}  // namespace hullft
