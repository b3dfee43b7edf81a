// Gram matrices of many rows on tensor cores. A block makes a run of tiles, up to six a warp, whose
// sums stay in registers while the slices of its rows pass through shared memory, three at a time:
// cp.async brings two of them in while the warps multiply the third. Of long rows a block takes a
// share of the columns, several slices at a time where its rows are few. Arithmetic:
// csrc/cuda/README.md.
#include "async_copy.cuh"
#include "early_launch.cuh"
#include "gram.h"
#include "gram_grid.h"
#include "gram_slice.cuh"
#include "gram_tile.cuh"

namespace hullft {
namespace {

constexpr int kThreads = kBlockWarps * kWarp;
constexpr int kStages = 3;
constexpr int kMostRows = kMostStrips * kTileSide;
static_assert(kTileSide == kGridSide);

// Piece t of row r of a slice. Eight lanes, of two rows, read 128 bytes that lie side by side.
using Slab = uint4[kMostRows][kRowLanes];

template <typename T>
struct BlockShared {
  const T* rows[kMostRows];  // null: no tile of the pool has it
  Slab slabs[kStages];
};

// The tiles of a block. Its strips have slots in shared memory: the columns' come first,
// and the rows' follow, except in a triangle, whose rows are among its columns.
class Run {
 public:
  __device__ __forceinline__ Run(const TileGrid& grid, int64_t block)
      : across_(grid.side), triangle_(block < grid.first_square) {
    int64_t part = 0;  // of the triangle or square
    if (triangle_) {
      rows_ = columns_ = int(block / grid.blocks_of_triangle) * across_;
      part = block % grid.blocks_of_triangle;
      last_ = across_ * (across_ + 1) / 2;
    } else if (block < grid.first_panel) {
      part = block - grid.first_square;
      const Tile square = tile_of(part / grid.blocks_of_square, across_);
      rows_ = square.row + across_, columns_ = square.column;
      part %= grid.blocks_of_square;
      last_ = across_ * across_;
    } else {
      const int64_t panel = block - grid.first_panel;
      rows_ = grid.squares * across_ + int(panel / grid.panels_across) * grid.panel_rows;
      across_ = grid.panel_columns;
      columns_ = int(panel % grid.panels_across) * across_;
      last_ = grid.panel_rows * across_;
    }
    first_ = int(part) * grid.run;
    if (last_ > first_ + grid.run) last_ = first_ + grid.run;
    first_row_ = row_of(first_);
  }

  __device__ __forceinline__ int first() const { return first_; }
  __device__ __forceinline__ int last() const { return last_; }

  __device__ __forceinline__ int slots() const {
    const int last_row = row_of(last_ - 1);
    return triangle_ ? last_row + 1 : across_ + last_row - first_row_ + 1;
  }

  // The first row of a slot's strip.
  __device__ __forceinline__ int row_of_slot(int slot) const {
    if (slot < across_) return (columns_ + slot) * kTileSide;
    return (rows_ + first_row_ + slot - across_) * kTileSide;
  }

  struct Slots {
    int row, column;
  };
  __device__ __forceinline__ Slots slots_of(int t) const {
    const int row = row_of(t);
    if (triangle_) return {row, t - row * (row + 1) / 2};
    return {across_ + row - first_row_, t - row * across_};
  }

 private:
  // Row in the triangle, square or panel that tile t belongs to. The root of a square is exact.
  __device__ __forceinline__ int row_of(int t) const {
    return triangle_ ? int(sqrtf(float(8 * t + 1)) - 1) / 2 : t / across_;
  }

  int across_, rows_, columns_;  // strips: of a row, the first of the rows and of the columns
  bool triangle_;
  int first_, last_, first_row_;
};

constexpr int kRowsOfPass = kThreads / kRowLanes;  // that a block copies at a time
constexpr int kPasses = parts(kMostRows, kRowsOfPass);

// The passes in which the thread has a piece of a row, a bit each.
template <typename T>
__device__ __forceinline__ unsigned passes_of_thread(const T* const* rows, int n_rows) {
  unsigned passes = 0;
#pragma unroll
  for (int pass = 0; pass < kPasses; ++pass) {
    const int r = int(threadIdx.x) / kRowLanes + pass * kRowsOfPass;
    if (r < n_rows && rows[r]) passes |= 1u << pass;
  }
  return passes;
}

// The thread's share of a slice. What cannot be copied 16 bytes at a time, and what lies past d, it
// stores itself.
template <typename T>
__device__ __forceinline__ void fetch(const PoolView& pool, const T* const* rows, unsigned passes,
                                      int slice, uint4* slab) {
  const unsigned thread = threadIdx.x;
  const int64_t start = int64_t(slice) * kSlice<T> + thread % kRowLanes * kVector<T>;
  rows += thread / kRowLanes, slab += thread;
  if (pool.vectors && start + kVector<T> <= pool.d) {
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass)
      if (passes & 1u << pass) copy_async(slab + pass * kThreads, rows[pass * kRowsOfPass] + start);
    return;
  }
#pragma unroll 1
  for (int pass = 0; pass < kPasses; ++pass) {
    if (!(passes & 1u << pass)) continue;
    const T* from = rows[pass * kRowsOfPass];
    T values[kVector<T>];
#pragma unroll
    for (int j = 0; j < kVector<T>; ++j) values[j] = start + j < pool.d ? from[start + j] : T{};
    memcpy(slab + pass * kThreads, values, sizeof values);
  }
}

constexpr int kHalfPieces = kFragmentRows * kRowLanes;  // of half the rows of a strip
constexpr int kStripPieces = 2 * kHalfPieces;

template <typename T>
__device__ __forceinline__ void read_strip(SharedPlace slab, int slot, Strip<T>& strip) {
  uint32_t words[4];
  load_shared<0>(slab, slot * kStripPieces, words);
  strip.set_row(0, words);
  load_shared<kHalfPieces>(slab, slot * kStripPieces, words);
  strip.set_row(1, words);
}

// The tiles of a warp, and their sums. Long rows have totals of so many slices.
constexpr int kSlicesOfTotal = 16;

template <typename T, bool kLong>
class WarpTiles {
 public:
  static constexpr int kMost = kLong ? kLongWarpTiles : kMostWarpTiles;

  // False if pool b wants none of them. Each lane looks at one tile and tells the others.
  __device__ __forceinline__ bool choose(const GramProblem& problem, int64_t b, const Run& run,
                                         int warp, int lane) {
    const int each = (run.last() - run.first() + kBlockWarps - 1) / kBlockWarps;
    const int t = run.first() + warp * each + lane;
    Run::Slots slots{-1, -1};
    if (lane < each && t < run.last()) {
      const Run::Slots of_tile = run.slots_of(t);
      const Tile tile{run.row_of_slot(of_tile.row), run.row_of_slot(of_tile.column)};
      if (wants_tile(problem, b, tile, kTileSide)) slots = of_tile;
    }
#pragma unroll
    for (int k = 0; k < kMost; ++k) {
      row_[k] = __shfl_sync(kFullWarp, slots.row, k);
      column_[k] = __shfl_sync(kFullWarp, slots.column, k);
    }
    return slots.row >= 0;
  }

  // Tiles of one row follow one another: that is split once.
  __device__ __forceinline__ void add(const uint4* slab, int lane) {
    const SharedPlace place = place_of(slab + lane);
    Strip<T> row, column;
    int loaded = -1;
#pragma unroll
    for (int k = 0; k < kMost; ++k) {
      if (row_[k] < 0) continue;
      if (row_[k] != loaded) read_strip(place, row_[k], row);
      loaded = row_[k];
      read_strip(place, column_[k], column);
#pragma unroll
      for (int half = 0; half < 2; ++half) add_slice(row, column, half, sums_[k][half]);
    }
  }

  __device__ __forceinline__ void add_to_totals() {
#pragma unroll
    for (int k = 0; k < kMost; ++k)
#pragma unroll
      for (int n = 0; n < 2; ++n)
#pragma unroll
        for (int c = 0; c < 4; ++c) totals_[k][n][c] += double(sums_[k][n][c]), sums_[k][n][c] = 0;
  }

  // Lanes have 8 products of a row of the tile, or of its mirror image, side by side.
  __device__ __forceinline__ void write(const GramProblem& problem, const BlockShare& mine,
                                        const Run& run, int lane) const {
    using S = std::conditional_t<kLong, double, float>;
    const GramOutputs<S> out(problem, mine.pool, mine.share);
    const int g = lane / kRowLanes, t = lane % kRowLanes;
#pragma unroll
    for (int k = 0; k < kMost; ++k) {
      if (row_[k] < 0) continue;
      const int row = run.row_of_slot(row_[k]) + g;
      const int column = run.row_of_slot(column_[k]) + 2 * t;
      S* const rows[2] = {out.row_at(row) + column, out.row_at(row + kFragmentRows) + column};
      const int columns[2] = {out.columns_of(row), out.columns_of(row + kFragmentRows)};
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int n = e / 2, j = n * kFragmentRows + e % 2;
        S* const mirrored = out.gram + int64_t(column + j) * out.width + row;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const int i = r * kFragmentRows, c = 2 * r + e % 2;
          const S value = kLong ? totals_[kLong ? k : 0][n][c] : sums_[k][n][c];
          if (column + j < columns[r]) rows[r][j] = value;
          if (!kLong && column + j < columns[r] && row + i < out.width) mirrored[i] = value;
        }
      }
    }
  }

 private:
  // The slots of a tile, -1: no such tile.
  int row_[kMost], column_[kMost];
  float sums_[kMost][2][4] = {};
  double totals_[kLong ? kMost : 1][2][4] = {};
};

template <typename T, bool kLong>
__global__ void __launch_bounds__(kThreads, 2)
    gram_blocks_kernel(GramProblem problem, TileGrid grid) {
  __shared__ BlockShared<T> shared;
  let_next_kernel_start();
  const BlockShare mine(problem, grid.blocks, kLong);
  const int64_t b = mine.pool;
  const Run run(grid, mine.part);
  const int warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp;
  const int n_rows = run.slots() * kTileSide;
  for (int r = int(threadIdx.x); r < n_rows; r += kThreads) {
    const int first = run.row_of_slot(r / kTileSide);
    bool wanted = wants_rows(problem, b, first, kTileSide);
    if (kLong) wanted = wanted && first + r % kTileSide < problem.pool.width + problem.queries;
    shared.rows[r] = wanted ? row_at<T>(problem, b, first + r % kTileSide) : nullptr;
  }
  if constexpr (kLong) {  // what a strip has no row for is 0
    for (int i = int(threadIdx.x); i < kStages * kMostRows * kRowLanes; i += kThreads)
      (&shared.slabs[0][0][0])[i] = {};
  }
  WarpTiles<T, kLong> tiles;
  const bool any = tiles.choose(problem, b, run, warp, lane);
  if (!__syncthreads_or(any)) return;
  const int n_slices = int(slices_of<T>(mine.last));  // 64 bytes each: 128 GB have fewer
  const int depth = kLong ? kMostRows / n_rows : 1;   // slices of a slab
  const int slice_pieces = n_rows * kRowLanes;
  const unsigned passes = passes_of_thread(shared.rows, n_rows);
  const auto fetch_slab = [&](int slice, int stage) {
    for (int s = 0; s < depth && slice + s < n_slices; ++s)
      fetch(problem.pool, shared.rows, passes, slice + s,
            &shared.slabs[stage][0][0] + s * slice_pieces);
    close_group();
  };
  int slice = int(mine.first / kSlice<T>);
#pragma unroll
  for (int s = 0; s < kStages - 1; ++s) fetch_slab(slice + s * depth, s);
  int stage = 0, added = 0;
#pragma unroll 1  // one turn has 72 products, enough to overlap
  for (; slice < n_slices; slice += depth) {
    wait_for_groups<kStages - 2>();
    __syncthreads();  // all have read the slab that is filled next
    fetch_slab(slice + (kStages - 1) * depth, stage == 0 ? kStages - 1 : stage - 1);
    __syncwarp();  // fetch lets lanes go apart, and a product wants all of them
#pragma unroll 1
    for (int s = 0; s < depth && slice + s < n_slices; ++s)
      tiles.add(&shared.slabs[stage][0][0] + s * slice_pieces, lane);
    stage = stage + 1 == kStages ? 0 : stage + 1;
    added += depth;
    if (kLong && added + depth > kSlicesOfTotal) tiles.add_to_totals(), added = 0;
  }
  if (kLong) tiles.add_to_totals();
  tiles.write(problem, mine, run, lane);
}

}  // namespace

cudaError_t launch_gram_blocks(const GramProblem& problem, int warp_tiles, cudaStream_t stream) {
  const TileGrid grid = tile_grid(problem.pool.width, problem.queries, warp_tiles);
  const bool is_long = problem.shares.count > 0;
  const int64_t blocks = grid.blocks * problem.pools * std::max(problem.shares.count, 1);
  const auto kernel = for_narrow_storage(problem.pool.storage, [&](auto x) {
    using T = decltype(x);
    return is_long ? gram_blocks_kernel<T, true> : gram_blocks_kernel<T, false>;
  });
  HULLFT_LAUNCH(kernel, dim3(unsigned(blocks)), dim3(kThreads), 0, stream, problem, grid);
  return cudaGetLastError();
}

}  // namespace hullft
