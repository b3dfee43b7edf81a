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

// Pairs of columns. In every second pair of rows they lie four places further, modulo 8: neither
// stores nor loads of a warp meet in a bank.
using SliceTotals = float2[kTileSide][kTileSide / 2];

__device__ __forceinline__ int place_of_pair(int row, int pair) { return pair ^ (row & 2) * 2; }

template <typename T>
__device__ __forceinline__ void store_slice(const uint32_t (&words)[kTileRows][4], int g, int t,
                                            SliceTotals& totals) {
  Strip<T> a, b;
#pragma unroll
  for (int r = 0; r < 2; ++r) a.set_row(r, words[r]), b.set_row(r, words[2 + r]);
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    float products[4] = {};
    add_slice(a, b, n, products);
#pragma unroll
    for (int c = 0; c < 4; c += 2) {
      const int row = g + c / 2 * kFragmentRows;
      totals[row][place_of_pair(row, n * kFragmentRows / 2 + t)] = {products[c], products[c + 1]};
    }
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
  const int place = i * kTileSide + place_of_pair(i, j / 2) * 2 + j % 2;
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
    for (int s = 0; s < kPass && first + s < n_slices; ++s)
      total += reinterpret_cast<const float*>(totals[half][s])[place];
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

// Padded: no bank conflicts.
struct Operands {
  double a[kWideSide][kChunk + 2], b[kWideSide][kChunk + 2];
};

union alignas(16) PlainShared {
  Operands operands;
  double shares[kGroups][kWideSide][kWideSide + 2];
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

// Two numbers of each row as float64, zeros past the `last` column.
template <typename T, int kRows>
__device__ __forceinline__ void load_wide_rows(const T* const (&rows)[kRows], int64_t start,
                                               int64_t last, int column, bool vectors,
                                               uint32_t (&words)[kRows][4]) {
  const int64_t left = last - start - column;
  if constexpr (sizeof(T) == 8) {
    load_rows(rows, start, left, vectors && start + kChunk <= last, words);
  } else {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      double pair[2];
      for (int e = 0; e < 2; ++e) pair[e] = e < left ? widen_to<double>(rows[r][start + e]) : 0.0;
      memcpy(words[r], pair, sizeof pair);
    }
  }
}

// A warp reads every eighth row of both operands, all of a chunk before it stores the first.
template <typename T, bool kLong>
__global__ void __launch_bounds__(kThreads, 2)
    gram_float64_kernel(GramProblem problem, Tiles tiles) {
  __shared__ PlainShared shared;
  let_next_kernel_start();
  const PoolView& pool = problem.pool;
  const BlockShare mine(problem, tiles.all, kLong);
  const int64_t b = mine.pool;
  const Tile tile = tile_at(tiles, mine.part, kWideSide);
  if (!wants_tile(problem, b, tile, kWideSide)) return;
  const int warp = int(threadIdx.x) / kWarp, column = int(threadIdx.x) % kWarp * kVector<double>;
  constexpr int kRows = kWideSide / kWarps;  // of each operand, for a warp
  const T* rows[2 * kRows];
#pragma unroll
  for (int r = 0; r < 2 * kRows; ++r) {
    const int first = r < kRows ? tile.row : tile.column - kWideSide;
    rows[r] = opaque(row_at<T>(problem, b, first + r * kWarps + warp) + mine.first + column);
  }
  const int group = int(threadIdx.x) / kGroupThreads, place = int(threadIdx.x) % kGroupThreads;
  const int i = place % kSpan, j = place / kSpan;
  double sums[kSide][kSide] = {};
  using Columns = std::conditional_t<kLong, int, int64_t>;  // a share has few
  const Columns n = Columns(mine.last - mine.first);
  for (Columns start = 0; start < n; start += kChunk) {
    uint32_t words[2 * kRows][4] = {};
    load_wide_rows(rows, start, n, column, pool.vectors, words);
#pragma unroll
    for (int r = 0; r < 2 * kRows; ++r) {
      auto& operand = r < kRows ? shared.operands.a : shared.operands.b;
      double* to = &operand[r % kRows * kWarps + warp][column];
      *reinterpret_cast<uint4*>(to) = {words[r][0], words[r][1], words[r][2], words[r][3]};
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
  const GramOutputs<double> out(problem, b, mine.share);
  for (int e = int(threadIdx.x); e < kWideSide * kWideSide; e += kThreads) {
    const int i = tile.row + e / kWideSide, j = tile.column + e % kWideSide;
    double total = 0;
    for (int s = 0; s < kGroups; ++s) total += shared.shares[s][e / kWideSide][e % kWideSide];
    kLong ? out.put_lower(i, j, total) : out.put(i, j, total);
  }
}

// A block a tile. The tiles of 2^31 blocks, 1 KB of products each, have no memory on any device.
cudaError_t launch_tiles(void (*kernel)(GramProblem, Tiles), const GramProblem& problem, int side,
                         cudaStream_t stream) {
  const Tiles tiles = tiles_of(problem.pool.width, problem.queries, side);
  const int64_t blocks = tiles.all * problem.pools * std::max(problem.shares.count, 1);
  HULLFT_LAUNCH(kernel, dim3(unsigned(blocks)), dim3(kThreads), 0, stream, problem, tiles);
  return cudaGetLastError();
}

// The products of every share, and their sums.
cudaError_t launch_long_gram(const GramProblem& problem, cudaStream_t stream) {
  const auto wide = [](auto x) { return gram_float64_kernel<decltype(x), true>; };
  const cudaError_t status =
      problem.wide_products
          ? launch_tiles(for_storage(problem.pool.storage, wide), problem, kWideSide, stream)
          : launch_gram_blocks(problem, kLongWarpTiles, stream);
  return status == cudaSuccess ? launch_gram_sum(problem, stream) : status;
}

}  // namespace

cudaError_t launch_gram(const GramProblem& problem, int64_t sms, cudaStream_t stream) {
  if (problem.pools == 0) return cudaSuccess;
  if (problem.shares.count) return launch_long_gram(problem, stream);
  const Storage storage = problem.pool.storage;
  const auto wide = [](auto x) { return gram_float64_kernel<decltype(x), false>; };
  if (problem.wide_products)
    return launch_tiles(for_storage(storage, wide), problem, kWideSide, stream);
  const GramPlan plan = plan_gram(problem.pool, false, problem.pools, problem.queries, sms);
  if (plan.warp_tiles) return launch_gram_blocks(problem, plan.warp_tiles, stream);
  const auto spread = [](auto x) { return gram_spread_kernel<decltype(x)>; };
  return launch_tiles(for_narrow_storage(storage, spread), problem, kTileSide, stream);
}

}  // namespace hullft
