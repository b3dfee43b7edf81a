// One warp takes the steps of one query, with the state in registers: the schedule of
// core/frank_wolfe.h for small pools whose Gram matrix is there. Lane l holds candidates l, l + 32
// and so on. <w, b> and <w, u> follow from step to step in float64, so that a step reduces nothing
// but the largest correlations. The other warps of the block help before and after the steps.
#pragma once

#include "early_launch.cuh"
#include "fw_answer.cuh"

namespace hullft {

constexpr int kSlots = kWarpCandidates / kWarp;  // candidates of a lane
constexpr int kRefresh = 16;                     // steps between two sums of <w, b> and <w, u>

// Products with the query, and squares; -inf and 0 past the pool.
struct FwProducts {
  double b[kWarpCandidates], square[kWarpCandidates];
};

template <typename S>
struct FwWarpShared {
  FwControl<S> control;
  BlockScratch scratch;
  union {
    FwProducts products;            // during the steps
    S support_gram[kSmallGram<S>];  // after them
  };
  double gain[kWarpCandidates];
  S weight[kWarpCandidates];
  int atom[kWarpCandidates], order[kWarpCandidates];
  int counts[kWarpCandidates], givers[kWarpCandidates];
};

// A candidate that a reduction found.
struct FwPick {
  int k;
  double b;
  Atom<double> atom;
};

// A lane's candidate of the largest value, and its u.
template <typename S>
struct LaneBest {
  S value, u;
  int k;
};

// x / y for the length of a step. To float32 without the slow path of an IEEE division: one step of
// Newton's method makes 40 bits of the reciprocal's 20.
template <typename S>
__device__ __forceinline__ S quotient(double x, double y) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(S) == 4) {
    double r;
    asm("rcp.approx.ftz.f64 %0, %1;" : "=d"(r) : "d"(y));
    const double q = x * r;
    return S(fma(q, fma(-y, r, 1.0), q));
  }
#endif
  return S(x / y);
}

template <typename S>
class FwWarp {
 public:
  // products: the rows' with the query. gram: of the query's pool, a row is `width` long.
  __device__ __forceinline__ FwWarp(const FwProblem& problem, int64_t query, const S* products,
                                    const S* gram, FwWarpShared<S>& shared)
      : p_(problem), query_(query), products_(products), gram_(gram), shared_(shared) {}

  __device__ __forceinline__ void solve(const FwOutputs& out) {
    const bool nothing = sees_nothing(p_.pool, query_);
    if (!nothing) read_inputs();
    wait_for_kernel_before();  // of the Gram matrices and the products
    if (nothing) {
      write_nothing<S>(p_.pool, p_.query, query_, 1, p_.n_select, out, shared_.scratch, me_);
      return;
    }
    if (n_ == 0 || !load_products()) return write_failure<S>(query_, p_.n_select, out, me_);
    if (me_.warp == 0) start();
    while (true) {
      if (me_.warp == 0) advance();
      __syncthreads();
      const Action action = shared_.control.action;
      if (action == Action::kFail) return write_failure<S>(query_, p_.n_select, out, me_);
      residual_ = exact_residual<S>(p_, query_, n_, table(), shared_.control.support_size,
                                    shared_.scratch, me_);
      if (action == Action::kDone || double(residual_) < stopping_.residual) return write(out);
    }
  }

 private:
  // ---- all warps

  // What no kernel of this solve writes: the size of the pool and the square of the query.
  __device__ __forceinline__ void read_inputs() {
    n_ = checked_size(p_.pool, query_, me_);
    S qq = 0;
    with_rows<S>(p_.pool, query_, n_, [&](const auto& rows) {
      qq = square_of<S>(query_at(rows, p_.query, query_), rows.d, me_);
    });
    qq_ = double(S(block_sum(qq, shared_.scratch, me_)));
  }

  // The products with the query and the squares into shared memory; false if one is not finite.
  __device__ __forceinline__ bool load_products() {
    bool bad = false;
    for (int k = me_.thread; k < kWarpCandidates; k += me_.n_threads) {
      shared_.products.b[k] = k < n_ ? double(products_[k]) : -INFINITY;
      shared_.products.square[k] = k < n_ ? double(column(k)[k]) : 0.0;
      bad = bad || (k < n_ && !finite(shared_.products.b[k]));
    }
    stopping_ = stopping_of<S>(p_, qq_);
    return !__syncthreads_or(bad || !finite(qq_));
  }

  __device__ __forceinline__ const S* column(int k) const {
    return gram_ + int64_t(k) * p_.pool.width;
  }

  __device__ __forceinline__ FwTable<S> table() const {
    return {shared_.atom, shared_.weight, shared_.order};
  }

  __device__ __forceinline__ void write(const FwOutputs& out) const {
    const FwControl<S>& control = shared_.control;
    const CountArrays counts{shared_.gain, shared_.counts, shared_.givers};
    const FwAnswer<S> answer{table(), counts, shared_.support_gram, kSmallGram<S>,
                             control.support_size};
    const auto b = [this](int k) { return shared_.products.b[k]; };
    const auto of_entry = [this](int entry) { return column(shared_.atom[entry]); };
    write_answer(p_, query_, answer, b, of_entry, out, me_);
    if (me_.thread == 0)
      write_scalars<S>(query_, answer.size(p_), residual_, control.gap, control.iterations, out);
  }

  // ---- warp 0: what is not an array of slots is the same in every lane

  __device__ __forceinline__ int candidate(int slot) const { return slot * kWarp + me_.lane; }

  // A bit for the slot of candidate k, none in all lanes but its own.
  __device__ __forceinline__ unsigned bit_of(int k) const {
    return unsigned(k) % kWarp == unsigned(me_.lane) ? 1u << unsigned(k) / kWarp : 0;
  }

  // The lane's candidate of the largest value, the lowest on ties. One that is not a number is
  // never it.
  __device__ __forceinline__ LaneBest<S> lane_best(const S (&values)[kSlots]) const {
    S most[kSlots], u[kSlots];
    int slot[kSlots];
#pragma unroll
    for (int i = 0; i < kSlots; ++i) most[i] = values[i], u[i] = u_[i], slot[i] = i;
#pragma unroll
    for (int apart = 1; apart < kSlots; apart *= 2)
#pragma unroll
      for (int i = 0; i < kSlots; i += 2 * apart) {
        const S larger = fmax(most[i], most[i + apart]);
        if (larger != most[i]) u[i] = u[i + apart], slot[i] = slot[i + apart];
        most[i] = larger;
      }
    // The key of a GPU's NaN would be the largest.
    return {S(fmax(most[0], -S(INFINITY))), u[0], candidate(slot[0])};
  }

  // The candidate of the largest value in the warp.
  __device__ __forceinline__ int best_of(const LaneBest<S>& mine) const {
    return warp_lowest(warp_top(mine.value).here, mine.k);
  }

  __device__ __forceinline__ FwPick pick_with(int k, S u) const {
    FwPick pick;
    pick.k = k;
    pick.b = shared_.products.b[k];
    pick.atom.u = double(u);
    pick.atom.c = pick.b - pick.atom.u;
    pick.atom.gram = shared_.products.square[k];
    return pick;
  }

  // u: in the lane of candidate k, its u.
  __device__ __forceinline__ FwPick pick_of(int k, S u) const {
    return pick_with(k, __shfl_sync(kFullWarp, u, k));  // of lane k % 32
  }

  __device__ __forceinline__ FwPick best_pick(const S (&values)[kSlots]) const {
    const LaneBest<S> mine = lane_best(values);
    return pick_of(best_of(mine), mine.u);
  }

  // The row of the Gram matrix that a pick names; a pick of NaN may lie past the pool.
  __device__ __forceinline__ unsigned row_start(int k) const {
    const int last = n_ - 1;
    return unsigned(k < last ? k : last) * unsigned(p_.pool.width);
  }

  // Where the lane's share of a column begins.
  __device__ __forceinline__ const S* column_start(int k) const {
    return opaque(lane_gram_ + row_start(k));
  }

  // The lane's share of a column. Slots past the pool keep what they hold. Not by __ldg, which is
  // for memory that nothing writes while the kernel runs: the Gram matrix may still be on its way.
  __device__ __forceinline__ void load_column(const S* from, S (&to)[kSlots]) const {
#pragma unroll
    for (int i = 0; i < kSlots; ++i)
      if (slots_ >> i & 1) to[i] = from[i * kWarp];
  }

  // The solve starts at the vertex of largest correlation.
  __device__ __forceinline__ void start() {
#pragma unroll
    for (int i = 0; i < kSlots; ++i) b_[i] = S(shared_.products.b[candidate(i)]), u_[i] = w_[i] = 0;
    lane_gram_ = opaque(gram_ + me_.lane);
    slots_ = (1u << (n_ - me_.lane + kWarp - 1) / kWarp) - 1;
    const FwPick s = best_pick(b_);
    load_column(column_start(s.k), u_);
#pragma unroll
    for (int i = 0; i < kSlots; ++i) w_[i] = S(bit_of(s.k) >> i & 1);
    enter(s.k, false);
    it_ = {s.b, s.atom.gram};
    pause_ = stopping_.last < kRefresh ? stopping_.last : kRefresh;
    floor_ = stopping_.within;
  }

  // Steps until all warps are needed: at the end, or where the residual may be 0.
  __device__ __forceinline__ void advance() {
    Action action = Action::kStep;
    while (action == Action::kStep) {
      action = take_steps();
      if (!finite(gap_) || !finite(it_.wu)) action = Action::kFail;
      if (action == Action::kStep) refresh();
    }
    publish(action);
    // If the solve goes on, the rows have said that this residual is not 0.
    floor_ = -INFINITY;
    pause_ = iterations_ + 1;
  }

  // Each lane computes the step toward its own candidate while the warp finds the best of all, and
  // the weights follow while it finds the next. The order matters: nvcc 13.0 moves little across a
  // reduction, and waits for loads that come before a shuffle. Returns kStep where the sums are
  // due.
  __device__ __forceinline__ Action take_steps() {
    S c[kSlots], g[kSlots] = {};  // a column, 0 in slots past the pool
    correlations(c);
    LaneBest<S> mine = lane_best(c);
    bool here = warp_top(mine.value).here;
    while (true) {
      const double squared = (qq_ - it_.wb) - mean_correlation(it_);
      // The negation sees what is not a number.
      const S of_mine = step_toward(pick_with(mine.k, mine.u), is_last() | !(squared > floor_));
      const int k = warp_lowest(here, mine.k);
      const S* from = column_start(k);
      const FwPick top = pick_of(k, mine.u);
      const bool held = is_held(k);
      const S gamma = __shfl_sync(kFullWarp, of_mine, k);
      load_column(from, g);
      if (gamma < 0) {
        gap_ = top.atom.c - mean_correlation(it_);
        return reason(squared);
      }
      const S scale = 1 - gamma;
      move_products(scale, gamma, g);
      move_sums(top, scale, gamma);
      correlations(c);
      mine = lane_best(c);
      here = warp_top(mine.value).here;
      move_weights(top, scale, gamma);
      enter(k, held);
      ++iterations_;
    }
  }

  __device__ __forceinline__ void correlations(S (&c)[kSlots]) const {
#pragma unroll
    for (int i = 0; i < kSlots; ++i) c[i] = b_[i] - u_[i];
  }

  // The length of a step, negative where the steps end.
  __device__ __forceinline__ S step_toward(const FwPick& pick, bool is_due) const {
    const double gap = pick.atom.c - mean_correlation(it_);
    const double curvature = squared_direction(pick.atom, it_);
    const S gamma = clip(quotient<S>(gap, curvature), S(0), S(1));
    const bool ends =
        is_due | !(gap > stopping_.gap_floor) | is_rounding(curvature, pick.atom.gram, it_.wu);
    return ends ? S(-1) : gamma;
  }

  // Steps go no further before sums or an answer; a solve ends with a full support.
  __device__ __forceinline__ bool is_last() const {
    return (iterations_ == pause_) | (support_size_ >= stopping_.full);
  }

  // Why the steps stop. A direction too short to move along ends a solve.
  __device__ __forceinline__ Action reason(double squared) const {
    if (iterations_ == stopping_.last || gap_ <= stopping_.gap_floor) return Action::kDone;
    if (support_size_ >= stopping_.full) return Action::kDone;
    if (squared <= floor_) return Action::kResidual;
    return iterations_ == pause_ ? Action::kStep : Action::kDone;
  }

  __device__ __forceinline__ void move_products(S scale, S by, const S (&g)[kSlots]) {
#pragma unroll
    for (int i = 0; i < kSlots; ++i) {
      u_[i] *= scale;
      u_[i] += by * g[i];
    }
  }

  __device__ __forceinline__ void move_weights(const FwPick& pick, S scale, S by) {
    const unsigned moved = bit_of(pick.k);
#pragma unroll
    for (int i = 0; i < kSlots; ++i) w_[i] = w_[i] * scale + (moved >> i & 1 ? by : S(0));
  }

  __device__ __forceinline__ void move_sums(const FwPick& pick, S scale, S by) {
    const double z = double(scale), y = double(by);
    it_.wb = z * it_.wb + y * pick.b;
    it_.wu = z * (z * it_.wu + 2 * y * pick.atom.u) + y * y * pick.atom.gram;
  }

  // Whether the support has candidate k.
  __device__ __forceinline__ bool is_held(int k) const {
    return __shfl_sync(kFullWarp, held_, k) >> unsigned(k) / kWarp & 1;
  }

  __device__ __forceinline__ void enter(int k, bool held) {
    support_size_ += !held;
    held_ |= bit_of(k);
  }

  // The sums from the slots, so that the recurrences cannot drift.
  __device__ __forceinline__ void refresh() {
    double wb = 0, wu = 0;
#pragma unroll
    for (int i = 0; i < kSlots; ++i) {
      if (!(held_ >> i & 1)) continue;
      wb += double(w_[i]) * double(b_[i]);
      wu += double(w_[i]) * double(u_[i]);
    }
    it_ = {warp_sum(wb), warp_sum(wu)};
    const int last = stopping_.last;
    pause_ = last - iterations_ < kRefresh ? last : iterations_ + kRefresh;
    floor_ = stopping_.within;
  }

  // The support as a table, for all warps.
  __device__ __forceinline__ void publish(Action action) {
    int listed = 0;
#pragma unroll
    for (int i = 0; i < kSlots; ++i) {
      const bool holds = held_ >> i & 1;
      const unsigned lanes = __ballot_sync(kFullWarp, holds);
      const int entry = listed + __popc(lanes & ((1u << me_.lane) - 1));
      if (holds) {
        shared_.atom[entry] = candidate(i), shared_.weight[entry] = w_[i];
      }
      listed += __popc(lanes);
    }
    if (me_.lane != 0) return;
    FwControl<S>& control = shared_.control;
    control.action = action, control.support_size = listed;
    control.iterations = iterations_, control.gap = S(gap_);
  }

  const FwProblem& p_;
  const int64_t query_;
  const S *const products_, *const gram_;
  FwWarpShared<S>& shared_;
  const BlockThread me_;
  int n_ = 0;
  S residual_ = 0;
  double qq_ = 0;
  FwStopping stopping_;
  // State of warp 0. Slot i of a lane is candidate i * 32 + lane.
  S b_[kSlots], u_[kSlots], w_[kSlots];
  unsigned held_ = 0;  // a bit for each slot in the support
  Iterate<double> it_{0, 0};
  double gap_ = 0;
  double floor_ = 0;  // of the squared residual; lets one step pass that the rows have agreed to
  int support_size_ = 0, iterations_ = 0;
  const S* lane_gram_ = nullptr;
  unsigned slots_ = 0;  // a bit for each slot of the lane in the pool
  int pause_ = 0;       // steps until the sums are due, or until the end
};

}  // namespace hullft
