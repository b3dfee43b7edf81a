// A block makes one square tile of the lower triangle and its mirror image. Its eight warps split d
// among them, each makes the whole tile of its share, and the shares are added up in order.
// Arithmetic: csrc/cuda/README.md.
#include <algorithm>

#include "gram.h"
#include "gram_tile.cuh"
#include "load.cuh"
#include "mma.cuh"

namespace hullft {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;
constexpr int kLargeTile = 32, kSmallTile = 16;

// Cycles of an H100; csrc/cuda/README.md derives them. They say where the one way of making columns
// overtakes the other.
constexpr double kSms = 132;
constexpr double kFloat64ProductsPerCycle = 32;  // of an SM
constexpr double kSmBytesPerCycle = 40;          // that one block reads
constexpr double kDeviceBytesPerCycle = 1914;

// Columns of a slice, which a warp takes at a time: 16 bytes of a row for each of four lanes.
template <typename T>
constexpr int kSlice = kRowLanes * kVector<T>;

// Sums of float32 for each product: those of float32 numbers have three, see multiply.
template <typename T>
constexpr int kSums = sizeof(T) == 4 ? 3 : 1;

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
#pragma unroll 1  // all at once take too many registers
    for (int j = 0; j < kVector<T>; ++j)
#pragma unroll
      for (int r = 0; r < kRows; ++r) push(words[r], j < left ? rows[r][start + j] : T{});
  }
}

// x = hi + lo, up to the last bit of x: both have the 11 bits of TF32, and lo may lack one.
template <int kCount>
__device__ __forceinline__ void split(const uint32_t (&x)[kCount], uint32_t (&hi)[kCount],
                                      uint32_t (&lo)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    hi[i] = (x[i] + 0x1000u) & kTf32Mask;  // to nearest; if x is NaN or infinite, lo is NaN
    lo[i] = float_to_bits(bits_to_float(x[i]) - bits_to_float(hi[i])) & kTf32Mask;
  }
}

// sums += a b^T. Products of 16-bit numbers are exact. Of (hi + lo)(hi' + lo') float32 leaves out
// lo lo'. hi lo' and lo hi' have sums of their own, or rows i and j would not get those of j and i.
template <typename T>
__device__ __forceinline__ void multiply(float (&sums)[kSums<T>][4], const uint32_t (&a)[4],
                                         const uint32_t (&b)[2]) {
  if constexpr (kSums<T> == 1) {
    mma<T>(sums[0], a, b);
  } else {
    uint32_t a_hi[4], a_lo[4], b_hi[2], b_lo[2];
    split(a, a_hi, a_lo), split(b, b_hi, b_lo);
    mma<T>(sums[0], a_hi, b_hi);
    mma<T>(sums[1], a_hi, b_lo);
    mma<T>(sums[2], a_lo, b_hi);
  }
}

template <typename T>
__device__ __forceinline__ float total(const float (&sums)[kSums<T>][4], int i) {
  if constexpr (kSums<T> == 1) return sums[0][i];
  return sums[0][i] + (sums[1][i] + sums[2][i]);
}

// The tile of a warp: 16 x 8 products at a time.
template <typename T, int kTile>
struct WarpTile {
  static constexpr int kRows = kTile / kFragmentRows;  // of each operand, for a lane
  float sums[kRows / 2][kRows][kSums<T>][4] = {};

  // words: those of a lane, of the rows of a and then of b. Which of them share an instruction does
  // not matter as long as a and b agree.
  __device__ __forceinline__ void add(const uint32_t (&words)[2 * kRows][4]) {
#pragma unroll
    for (int w = 0; w < 4; w += 2)
#pragma unroll
      for (int i = 0; i < kRows / 2; ++i)
#pragma unroll
        for (int j = 0; j < kRows; ++j) {
          const uint32_t(&low)[4] = words[2 * i], (&high)[4] = words[2 * i + 1];
          const uint32_t a[4] = {low[w], high[w], low[w + 1], high[w + 1]};
          const uint32_t b[2] = {words[kRows + j][w], words[kRows + j][w + 1]};
          multiply<T>(sums[i][j], a, b);
        }
  }

  __device__ __forceinline__ void store(int g, int t, float (&share)[kTile][kTile + 1]) const {
#pragma unroll
    for (int i = 0; i < kRows / 2; ++i)
#pragma unroll
      for (int j = 0; j < kRows; ++j)
#pragma unroll
        for (int c = 0; c < 4; ++c)
          share[2 * kFragmentRows * i + g + c / 2 * kFragmentRows]
               [kFragmentRows * j + 2 * t + c % 2] = total<T>(sums[i][j], c);
  }
};

// A lane has eight loads of 16 bytes under way: of one slice for a large tile, of two for a small
// one. Both add up the products of two rows in the same order.
template <typename T, int kTile>
__global__ void __launch_bounds__(kThreads, kTile == kLargeTile && kSums<T> == 3 ? 1 : 2)
    gram_kernel(PoolView pool, int64_t n_tiles, float* gram) {
  constexpr int kSlices = kLargeTile / kTile;
  constexpr int kRows = WarpTile<T, kTile>::kRows;
  __shared__ float shares[kWarps][kTile][kTile + 1];
  const int64_t query = int64_t(blockIdx.x) / n_tiles;
  const Tile tile = tile_of(int64_t(blockIdx.x) % n_tiles, kTile);
  if (pool.sizes && tile.row >= pool.sizes[query]) return;
  const int warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp;
  const int g = lane / kRowLanes, t = lane % kRowLanes;
  const T* rows[2 * kRows];
#pragma unroll
  for (int r = 0; r < 2 * kRows; ++r) {
    const int first = r < kRows ? tile.row : tile.column - kTile;
    rows[r] = opaque(row_at<T>(pool, query, first + r * kFragmentRows + g) + t * kVector<T>);
  }
  WarpTile<T, kTile> products;
  for (int64_t slice = warp; slice * kSlice<T> < pool.d; slice += kSlices * kWarps) {
    uint32_t words[kSlices][2 * kRows][4] = {};
#pragma unroll
    for (int s = 0; s < kSlices; ++s) {
      const int64_t start = (slice + s * kWarps) * kSlice<T>;
      const bool whole = pool.vectors && start + kSlice<T> <= pool.d;
      load_rows(rows, start, pool.d - start - t * kVector<T>, whole, words[s]);
    }
#pragma unroll
    for (int s = 0; s < kSlices; ++s) products.add(words[s]);
  }
  products.store(g, t, shares[warp]);
  __syncthreads();
  write_tile(shares, tile, pool.width, gram + query * pool.width * pool.width);
}

// float64, on the ordinary units: four groups of 64 threads split every chunk of d, 4 x 4 products
// a thread.
constexpr int kGroups = 4;
constexpr int kGroupThreads = kThreads / kGroups;
constexpr int kChunk = 64;                // of d, in shared memory at a time
constexpr int kShare = kChunk / kGroups;  // of a chunk, for one group
constexpr int kSide = 4;                  // of a thread's square of products
constexpr int kSpan = kLargeTile / kSide;

struct Operands {
  double a[kLargeTile][kChunk + 1], b[kLargeTile][kChunk + 1];  // padded: no bank conflicts
};

union PlainShared {
  Operands operands;
  double shares[kGroups][kLargeTile][kLargeTile + 1];
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
    gram_float64_kernel(PoolView pool, int64_t n_tiles, double* gram) {
  __shared__ PlainShared shared;
  const int64_t query = int64_t(blockIdx.x) / n_tiles;
  const Tile tile = tile_of(int64_t(blockIdx.x) % n_tiles, kLargeTile);
  if (pool.sizes && tile.row >= pool.sizes[query]) return;
  const int warp = int(threadIdx.x) / kWarp, column = int(threadIdx.x) % kWarp * kVector<double>;
  constexpr int kRows = kLargeTile / kWarps;  // of each operand, for a warp
  const double* rows[2 * kRows];
#pragma unroll
  for (int r = 0; r < 2 * kRows; ++r) {
    const int first = r < kRows ? tile.row : tile.column - kLargeTile;
    rows[r] = opaque(row_at<double>(pool, query, first + r * kWarps + warp) + column);
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
  write_tile(shared.shares, tile, pool.width, gram + query * pool.width * pool.width);
}

template <int kTile, typename S>
cudaError_t launch(void (*kernel)(PoolView, int64_t, S*), const PoolView& pool, int64_t n_pools,
                   void* gram, cudaStream_t stream) {
  const int64_t n_tiles = tiles_of(pool.width, kTile);
  if (n_tiles * n_pools > 0x7fffffff) return cudaErrorInvalidValue;
  HULLFT_LAUNCH(kernel, dim3(unsigned(n_tiles * n_pools)), dim3(kThreads), 0, stream, pool, n_tiles,
                static_cast<S*>(gram));
  return cudaGetLastError();
}

// Small tiles where one wave takes them all: more SMs work, and each reads less.
template <typename T>
cudaError_t launch_tiles(const PoolView& pool, int64_t n_pools, void* gram, cudaStream_t stream) {
  return double(tiles_of(pool.width, kSmallTile) * n_pools) <= kSms
             ? launch<kSmallTile>(gram_kernel<T, kSmallTile>, pool, n_pools, gram, stream)
             : launch<kLargeTile>(gram_kernel<T, kLargeTile>, pool, n_pools, gram, stream);
}

// Products that an SM makes in a cycle: those of float64 by its units, the others by the bytes that
// it reads for a large tile.
double products_per_cycle(Storage storage) {
  return storage == Storage::kFloat64
             ? kFloat64ProductsPerCycle
             : kSmBytesPerCycle * kLargeTile / 2 / double(bytes_of(storage));
}

}  // namespace

bool gram_pays(const PoolView& pool, int64_t batch, int64_t columns) {
  const double k = pool.width, d = double(pool.d), pools = double(n_pools(pool, batch));
  const double products =
      pools * double(tiles_of(pool.width, kLargeTile)) * kLargeTile * kLargeTile * d;
  const double gram = products / (products_per_cycle(pool.storage) * kSms);
  const double rate =
      std::min(kSmBytesPerCycle * std::min(double(batch), kSms), kDeviceBytesPerCycle);
  const double computed = std::min(k, double(columns));
  return gram < double(batch) * computed * k * d * double(bytes_of(pool.storage)) / rate;
}

cudaError_t launch_gram(const PoolView& pool, int64_t n_pools, void* gram, cudaStream_t stream) {
  if (n_pools == 0) return cudaSuccess;
  switch (pool.storage) {
    case Storage::kFloat64:
      return launch<kLargeTile>(gram_float64_kernel, pool, n_pools, gram, stream);
    case Storage::kBFloat16:
      return launch_tiles<BFloat16>(pool, n_pools, gram, stream);
    case Storage::kFloat16:
      return launch_tiles<Float16>(pool, n_pools, gram, stream);
    default:
      return launch_tiles<float>(pool, n_pools, gram, stream);
  }
}

}  // namespace hullft
