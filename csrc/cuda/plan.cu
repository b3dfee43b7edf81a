// Which kernels a selection launches, in which parts, and where they keep what.
#include <cmath>

#include "block_launch.cuh"
#include "corrective_state.cuh"
#include "frank_wolfe.h"
#include "fw_state.cuh"
#include "gram_grid.h"
#include "plan.h"
#include "sift.h"
#include "sift_block.cuh"

namespace hullft {
namespace {

// Predicted for an H100, and derived in csrc/cuda/README.md. They say where one way overtakes
// another.
constexpr double kFloat64ProductsPerCycle = 32;  // of an SM
constexpr double kL2BytesPerCycle = 24;          // that each SM reads while all do
constexpr double kSmBytesPerCycle = 40;          // that one block reads
constexpr double kDeviceBytesPerCycle = 1914;
constexpr double kTileCycles = 1.2;          // of a tile of 16 x 16, for a column: float32
constexpr double kNarrowTileCycles = 0.43;   // bfloat16 and float16
constexpr double kCopiedBytesPerCycle = 46;  // that an SM can issue, into shared memory
// An SM runs two blocks at a time. One alone often leaves it idle, and takes almost as long.
constexpr double kBlocksInTimeOfOne = 1.75;

// Of a round's two launches, and of steps that are longer where the state lies in global memory.
constexpr double kRoundCycles = 12'000;
// Rounds after the end of a solve are empty; columns after the last round are left to the blocks.
constexpr int64_t kMostRounds = 128;

// Shared memory of a solver's kernel besides the state.
constexpr int64_t kFixedSharedBytes = 1024;

// Columns that a corrective solve is expected to take: 15 on texts, 65 of ill-conditioned rows.
constexpr int kCorrectiveColumns = 32;

double waves(int64_t blocks, int64_t sms) { return std::ceil(double(blocks) / double(sms)); }

double bytes_of_strips(const PoolView& pool, double strips) {
  return strips * kGridSide * double(bytes_of(pool.storage));  // in a column
}

// Cycles of an SM that runs `blocks`, each of which copies `strips` of 16 rows for its tiles.
double blocks_cycles(const PoolView& pool, double blocks, double strips, double tiles) {
  const double tile = pool.storage == Storage::kFloat32 ? kTileCycles : kNarrowTileCycles;
  const double bytes = bytes_of_strips(pool, strips);
  const double issue = bytes / kCopiedBytesPerCycle + tiles * tile;
  return std::max(blocks * bytes / kL2BytesPerCycle, std::max(blocks, kBlocksInTimeOfOne) * issue) *
         double(pool.d);
}

double grid_cycles(const PoolView& pool, int64_t pools, int queries, int64_t sms, int warp_tiles) {
  const TileGrid grid = tile_grid(pool.width, queries, warp_tiles);
  const double blocks = waves(grid.blocks * pools, sms);
  const double triangle = double(grid.triangle_tiles()) / grid.blocks_of_triangle;
  const double square = double(grid.side * grid.side) / grid.blocks_of_square;
  const double of_square = blocks_cycles(pool, blocks, grid.side + square / grid.side, square);
  const double of_triangle = blocks_cycles(pool, blocks, grid.side, triangle);
  const double of_panel = blocks_cycles(pool, blocks, grid.panel_rows + grid.panel_columns,
                                        grid.panel_rows * grid.panel_columns);
  const double all = double(grid.first_square) * of_triangle +
                     double(grid.first_panel - grid.first_square) * of_square +
                     double(grid.blocks - grid.first_panel) * of_panel;
  return all / double(grid.blocks);
}

bool fits_tableau(const FwProblem& problem) {
  return problem.dense && problem.pool.width <= kTableauRows;
}

// Of a column of every query.
double column_cycles(const PoolView& pool, int64_t batch, int64_t sms, bool in_rounds) {
  const double row_bytes = double(pool.d) * double(bytes_of(pool.storage));
  const double bytes = double(batch) * pool.width * row_bytes;
  if (in_rounds) return bytes / kDeviceBytesPerCycle + kRoundCycles;
  const double by_blocks = kSmBytesPerCycle * double(std::min(batch, sms));
  return bytes / std::min(by_blocks, kDeviceBytesPerCycle);
}

// Where blocks would take twice as long, or more: many rounds may be empty. The first makes
// the query's products, and no step adds more than one row to the first.
void add_rounds(SolverPlan& plan, const FwProblem& p, const LaunchLimits& limits) {
  if (plan.gram) return;
  const bool pays = 2 * column_cycles(p.pool, p.batch, limits.sms, true) <
                    column_cycles(p.pool, p.batch, limits.sms, false);
  const int64_t columns = std::min<int64_t>(plan.slots, int64_t(p.max_iter) + 1);
  const int64_t planned = pays ? std::min(columns + 1, kMostRounds) : 0;
  plan.rounds = int(limits.rounds < 0 ? planned : limits.rounds);
  if (plan.rounds > 0) plan.shared_state = false, plan.state_bytes += kPauseBytes;
}

// What all plans begin with, for a state of so many bytes.
SolverPlan plan_of_state(const PoolView& pool, int64_t batch, const LaunchLimits& limits, bool gram,
                         bool wide, int64_t state_bytes) {
  SolverPlan plan{};
  plan.gram = gram, plan.wide = wide, plan.sms = limits.sms;
  plan.wide_products = gram ? has_wide_products(pool, wide) : wide;
  plan.shares = gram ? shares_of(pool.d, pool.width, wide) : Shares{pool.d, 0};
  plan.state_bytes = state_bytes;
  plan.shared_limit = limits.shared_bytes - kFixedSharedBytes;
  plan.shared_state = state_bytes <= plan.shared_limit;
  plan.threads =
      solver_threads(pool.width, wide, batch, plan.shared_state ? state_bytes : 0, limits);
  return plan;
}

// Divides the batch, and says what lies where. Of a query: bytes of its products, of its columns or
// Gram matrix, and of what lies behind them.
void lay_out(SolverPlan& plan, const PoolView& pool, int64_t batch, const LaunchLimits& limits,
             int64_t products, int64_t columns, int64_t behind) {
  constexpr int64_t kAligned = 3 * 16;
  const bool has_one_gram = plan.gram && n_pools(pool, batch) == 1;
  const int64_t state = plan.shared_state || plan.warp ? 0 : plan.state_bytes;
  // The products of every share: of the rows with one another and with the query.
  const int64_t of_row = plan.shares.count * pool.width * int64_t(sizeof(double));
  const int64_t partial = of_row * (has_one_gram ? 1 : pool.width + 1);
  const int64_t partial_of_all = has_one_gram ? of_row * pool.width : 0;
  const int64_t columns_of_all = has_one_gram ? columns : 0;
  plan.column_stride = has_one_gram ? 0 : columns;
  plan.part = queries_of_part(batch, products + state + plan.column_stride + partial + behind,
                              columns_of_all + partial_of_all + kAligned, limits.workspace_bytes);
  plan.states_offset = plan.part * products;
  plan.columns_offset = plan.states_offset + plan.part * state;
  plan.partial_offset =
      aligned_bytes(plan.columns_offset + plan.part * plan.column_stride + columns_of_all);
  plan.behind_offset = aligned_bytes(plan.partial_offset + plan.part * partial + partial_of_all);
  plan.workspace_bytes = plan.behind_offset + aligned_bytes(plan.part * behind);
}

}  // namespace

cudaError_t device_limits(LaunchLimits* limits) {
  int device = 0, shared_bytes = 0, sms = 0;
  cudaError_t status = cudaGetDevice(&device);
  if (status == cudaSuccess)
    status = cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (status == cudaSuccess)
    status = cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device);
  limits->shared_bytes = shared_bytes, limits->sms = sms;
  return status;
}

GramPlan plan_gram(const PoolView& pool, bool wide, int64_t pools, int queries, int64_t sms) {
  if (has_wide_products(pool, wide)) {
    constexpr int kWideSide = 32;
    const int64_t tiles = tiles_of(pool.width, queries, kWideSide).all;
    const double products = double(tiles * kWideSide * kWideSide);
    return {0,
            products * double(pools) * double(pool.d) / (kFloat64ProductsPerCycle * double(sms))};
  }
  const int64_t tiles = tiles_of(pool.width, queries, kGridSide).all;
  // A tile's block reads two, and its instructions take the time of a third.
  const double strips = 3 * waves(tiles * pools, sms);
  GramPlan best{0, bytes_of_strips(pool, strips) / kL2BytesPerCycle * double(pool.d)};
  for (int warp_tiles = 1; warp_tiles <= kMostWarpTiles; ++warp_tiles) {
    const double cycles = grid_cycles(pool, pools, queries, sms, warp_tiles);
    if (cycles < best.cycles) best = {warp_tiles, cycles};
  }
  return best;
}

bool gram_pays(const PoolView& pool, int64_t batch, int64_t columns, const SolverPlan& plan) {
  const double gram = plan_gram(pool, plan.wide, n_pools(pool, batch), 0, plan.sms).cycles;
  const double computed = std::min(double(pool.width), double(columns));
  const bool in_rounds = plan.rounds > 0 && plan.rounds < kMostRounds;
  return gram < computed * column_cycles(pool, batch, plan.sms, in_rounds);
}

SolverPlan plan_frank_wolfe(const FwProblem& p, const LaunchLimits& limits) {
  const auto plan_of = [](const auto&... arguments) { return plan_columns(arguments...); };
  return choose_columns(p, int64_t(p.max_support) + 1, limits, plan_of);
}

SolverPlan plan_columns(const FwProblem& p, const LaunchLimits& limits, bool gram, bool warp) {
  const int64_t width = p.pool.width, real_bytes = real_bytes_of(p.pool.storage);
  const int slots = int(std::min(width, int64_t(p.max_support) + 1));
  SolverPlan plan =
      plan_of_state(p.pool, p.batch, limits, gram, p.pool.storage == Storage::kFloat64,
                    fw_state_bytes(width, slots, real_bytes));
  plan.slots = slots;
  add_rounds(plan, p, limits);
  plan.warp = gram && warp && width <= kWarpCandidates;
  if (plan.warp) plan.threads = fw_warp_threads(p.batch, limits.full_device());
  const int64_t product_bytes = plan.warp ? aligned_bytes(width * real_bytes) : 0;
  lay_out(plan, p.pool, p.batch, limits, product_bytes, (gram ? width : slots) * width * real_bytes,
          0);
  return plan;
}

SolverPlan plan_corrective(const FwProblem& p, const LaunchLimits& limits) {
  if (p.pool.d >= kLongRow || fits_tableau(p)) {
    const SolverPlan plan = plan_corrective_columns(p, limits, true);
    if (plan.workspace_bytes <= limits.workspace_bytes) return plan;
  }
  const int columns = std::min(p.max_support, kCorrectiveColumns);
  return choose_columns(p, columns, limits, plan_corrective_columns);
}

SolverPlan plan_corrective_columns(const FwProblem& p, const LaunchLimits& limits, bool gram) {
  const int64_t width = p.pool.width;
  const bool wide = p.dense || p.pool.storage == Storage::kFloat64;
  const int64_t real_bytes = wide ? sizeof(double) : sizeof(float);
  // At most d + 1 rows are affinely independent, and one more joins before another leaves.
  const int slots = int(std::min({width, p.pool.d + 2, int64_t(p.max_support)}));
  SolverPlan plan = plan_of_state(p.pool, p.batch, limits, gram, wide,
                                  corrective_state_bytes(width, slots, real_bytes));
  plan.slots = slots;
  add_rounds(plan, p, limits);
  plan.warp = gram && fits_tableau(p);
  const int64_t product_bytes = gram ? aligned_bytes(width * real_bytes) : 0;
  // The square, and what it takes to find the residual of a support.
  const int64_t support_bytes = slots * (real_bytes_of(p.pool.storage) + int64_t(sizeof(int)));
  const int64_t long_bytes = plan.shares.count ? int64_t(sizeof(double)) + support_bytes : 0;
  lay_out(plan, p.pool, p.batch, limits, product_bytes, (gram ? width : slots) * width * real_bytes,
          long_bytes);
  return plan;
}

SolverPlan plan_sift(const SiftProblem& p, const LaunchLimits& limits) {
  return choose_columns(p, p.n_select, limits, plan_sift_columns);
}

SolverPlan plan_sift_columns(const SiftProblem& p, const LaunchLimits& limits, bool gram) {
  const int64_t width = p.pool.width, real_bytes = real_bytes_of(p.pool.storage);
  SolverPlan plan =
      plan_of_state(p.pool, p.batch, limits, gram, p.pool.storage == Storage::kFloat64,
                    sift_state_bytes(width, p.n_select, p.n_targets, real_bytes));
  plan.threads = threads_for(p.pool.width, plan.wide);
  lay_out(plan, p.pool, p.batch, limits, 0, gram ? width * width * real_bytes : 0,
          p.n_select * width * real_bytes);
  return plan;
}

}  // namespace hullft
