// One block solves one query: the schedule of core/frank_wolfe.h on the GPU. All warps update the
// correlations; warp 0 alone keeps the support and decides, between two barriers a step.
//
// The solver of fw_warp.cuh starts at the same vertex, stops by the same FwStopping and ends with
// the same answer, but its steps are another loop. Here a step is parted by what all warps do for
// it: their updates, and at times a column or a residual. So the state lies in shared memory, and
// decide() goes on where it left off. There the state is in the registers of one warp, and a step
// runs from end to end.
#pragma once

#include "fw_answer.cuh"

namespace hullft {

template <typename S>
class FwBlock {
 public:
  __device__ __forceinline__ FwBlock(const FwProblem& problem, const FwPlan& plan, int64_t query,
                                     const FwState<S>& state, S* columns, FwControl<S>& control,
                                     BlockScratch& scratch)
      : p_(problem),
        plan_(plan),
        query_(query),
        x_(state),
        columns_(columns),
        control_(control),
        scratch_(scratch) {}

  // Every product with the rows stands at one place in this loop: inlined twice, it would cost the
  // loop its registers.
  __device__ __forceinline__ void solve(const FwOutputs& out) {
    if (sees_nothing(p_.pool, query_)) {
      write_nothing<S>(p_.pool, p_.query, query_, 1, p_.n_select, out, scratch_, me_);
      return;
    }
    n_ = checked_size(p_.pool, query_, me_);
    if (n_ == 0) return fail(out);
    clear();
    while (control_.action < Action::kDone) {
      const Action action = control_.action;
      if (action == Action::kCorrelate || action == Action::kColumn) multiply(action);
      if (action == Action::kResidual)
        residual_ =
            exact_residual<1>(p_, query_, n_, x_.table, control_.support_size, scratch_, me_);
      if (action == Action::kCorrelate && !correlations_finite()) return fail(out);
      if (action == Action::kCorrelate || action == Action::kStep) update();
      __syncthreads();
      if (me_.warp == 0) decide(action);
      __syncthreads();
    }
    if (control_.action == Action::kFail) return fail(out);
    write(out);
  }

 private:
  __device__ __forceinline__ void fail(const FwOutputs& out) const {
    write_failure<S>(query_, p_.n_select, out, me_);
  }

  // ---- all warps

  __device__ __forceinline__ void clear() {
    for (int k = me_.thread; k < n_; k += me_.n_threads) x_.u[k] = 0;
    if (me_.thread == 0) {
      control_.action = Action::kCorrelate;
      control_.column = nullptr;
    }
    __syncthreads();
  }

  // The rows' products with the query into b, or with the picked atom into its column.
  __device__ __forceinline__ void multiply(Action action) {
    const bool correlate = action == Action::kCorrelate;
    S* out = correlate ? x_.b : columns_ + int64_t(control_.picked_entry) * p_.pool.width;
    S qq = 0;
    with_rows<S>(p_.pool, query_, n_, [&](const auto& rows) {
      const auto* x = correlate ? query_at(rows, p_.query, query_) : rows[control_.picked];
      multiply_rows(rows, 0, rows.n, x, out, me_);
      if (!correlate) return;
      for (int64_t i = me_.thread; i < rows.d; i += me_.n_threads)
        qq += widen_to<S>(x[i]) * widen_to<S>(x[i]);
    });
    if (correlate) qq_ = S(block_sum(qq, scratch_, me_));
  }

  // A row that is not finite makes its correlation so, whatever the query: no pass of its own.
  __device__ __forceinline__ bool correlations_finite() {
    bool bad = !finite(qq_);
    for (int k = me_.thread; k < n_; k += me_.n_threads) bad = bad || !finite(x_.b[k]);
    return !__syncthreads_or(bad);
  }

  // u <- scale * u + toward * G_s, and each warp's largest correlation.
  __device__ __forceinline__ void update() {
    const S* column = control_.column;
    Best<S> best = no_best<S>();
    for (int k = me_.thread; k < n_; k += me_.n_threads) {
      S u = x_.u[k];
      if (column) x_.u[k] = u = fma(control_.toward, column[k], control_.scale * u);
      see(best, x_.b[k] - u, k);
    }
    best = warp_best(best);
    if (me_.lane == 0) {
      control_.best_value[me_.warp] = best.value;
      control_.best_index[me_.warp] = best.index;
    }
  }

  // ---- warp 0: every lane holds the same members

  __device__ __forceinline__ const S* column(int entry) const {
    const int row = plan_.gram ? x_.table.atom[entry] : entry;
    return columns_ + int64_t(row) * p_.pool.width;
  }

  // The largest correlation over the pool, as the warps left it.
  __device__ __forceinline__ Best<S> best_of_pool() const {
    Best<S> best = no_best<S>();
    if (me_.lane < me_.n_warps)
      best = {control_.best_value[me_.lane], control_.best_index[me_.lane]};
    return warp_best(best);
  }

  __device__ __forceinline__ void decide(Action action) {
    if (action == Action::kCorrelate) return start();
    if (action == Action::kStep) return begin_step();
    if (action == Action::kResidual) return after_residual();
    if (!placed_) return place();
    finish_step();
  }

  // The solve starts at the vertex of largest correlation.
  __device__ __forceinline__ void start() {
    stopping_ = stopping_of<S>(p_, double(qq_));
    s_ = best_of_pool().index;
    s_entry_ = entry_of(s_);
    if (plan_.gram) return place();
    request_column();
  }

  __device__ __forceinline__ void place() {
    placed_ = true;
    support_size_ = 1;
    if (me_.lane == 0) x_.table.weight[s_entry_] = 1;
    __syncwarp();
    publish(1, 1);
    act(Action::kStep);
  }

  __device__ __forceinline__ void request_column() {
    if (me_.lane == 0) control_.picked = s_, control_.picked_entry = s_entry_;
    act(Action::kColumn);
  }

  __device__ __forceinline__ void act(Action action) {
    if (me_.lane != 0) return;
    control_.action = action;
    control_.support_size = support_size_;
    control_.iterations = iterations_;
    control_.gap = top_.value - mean_correlation(it_);
  }

  // <w, b> and <w, u>.
  __device__ __forceinline__ void measure() {
    top_ = best_of_pool();
    S wb = 0, wu = 0;
    for (int j = me_.lane; j < support_size_; j += kWarp) {
      const int k = x_.table.atom[j];
      const S w = x_.table.weight[j];
      wb += w * x_.b[k], wu += w * x_.u[k];
    }
    it_ = {warp_sum(wb), warp_sum(wu)};
  }

  __device__ __forceinline__ void begin_step() {
    measure();
    if (!finite(it_.wu) || top_.index >= n_) return act(Action::kFail);
    const S gap = top_.value - mean_correlation(it_);
    if (is_last() || double(gap) <= stopping_.gap_floor) return stop();
    if (double(squared_residual(it_, qq_)) <= stopping_.within) return act(Action::kResidual);
    choose();
  }

  __device__ __forceinline__ bool is_last() const {
    return iterations_ >= stopping_.last || support_size_ >= stopping_.full;
  }

  __device__ __forceinline__ void stop() {
    stops_ = true;
    act(Action::kResidual);
  }

  __device__ __forceinline__ void after_residual() {
    if (stops_ || double(residual_) < stopping_.residual) return act(Action::kDone);
    choose();
  }

  __device__ __forceinline__ void choose() {
    s_ = top_.index;
    s_entry_ = entry_of(s_);
    if (plan_.gram || s_entry_ < support_size_) return finish_step();
    request_column();
  }

  __device__ __forceinline__ void finish_step() {
    const Atom<S> s{x_.b[s_] - x_.u[s_], x_.u[s_], column(s_entry_)[s_]};
    const Step<S> step = toward_step(s, it_);
    if (!finite(step.toward)) return act(Action::kFail);
    if (!step.moves) return stop();
    commit(step);
  }

  // Weights and support follow at once, u in the next update().
  __device__ __forceinline__ void commit(const Step<S>& step) {
    if (s_entry_ == support_size_) ++support_size_;
    for (int j = me_.lane; j < support_size_; j += kWarp) {
      S w = x_.table.weight[j] * step.scale;
      if (j == s_entry_) w += step.toward;
      x_.table.weight[j] = w;
    }
    __syncwarp();
    ++iterations_;
    publish(step.scale, step.toward);
    act(Action::kStep);
  }

  __device__ __forceinline__ void publish(S scale, S toward) {
    if (me_.lane != 0) return;
    control_.scale = scale, control_.toward = toward;
    control_.column = toward > S(0) ? column(s_entry_) : nullptr;
  }

  // The entry of an atom. One outside the support gets the entry behind it.
  __device__ __forceinline__ int entry_of(int atom) const {
    for (int first = 0; first < support_size_; first += kWarp) {
      const int j = first + me_.lane;
      const bool is_it = j < support_size_ && x_.table.atom[j] == atom;
      const unsigned hits = __ballot_sync(kFullWarp, is_it);
      if (hits) return first + __ffs(int(hits)) - 1;
    }
    if (me_.lane == 0) x_.table.atom[support_size_] = atom, x_.table.weight[support_size_] = 0;
    __syncwarp();
    return support_size_;
  }

  __device__ __forceinline__ void write(const FwOutputs& out) {
    const auto b = [this](int atom) { return x_.b[atom]; };
    const auto of_entry = [this](int entry) { return column(entry); };
    const FwAnswer<S> answer{x_.table, x_.counts, x_.b, 2 * p_.pool.width, control_.support_size};
    write_answer(p_, query_, answer, b, of_entry, out, me_);
    if (me_.thread == 0)
      write_scalars<S>(query_, answer.size(p_), residual_, control_.gap, control_.iterations, out);
  }

  const FwProblem& p_;
  const FwPlan& plan_;
  const int64_t query_;
  const FwState<S> x_;
  S* const columns_;
  FwControl<S>& control_;
  BlockScratch& scratch_;
  const BlockThread me_;
  int n_ = 0;
  S qq_ = 0, residual_ = 0;
  // State of warp 0:
  Iterate<S> it_{0, 0};
  Best<S> top_{0, 0};
  int s_ = 0, s_entry_ = 0;  // the atom that the step goes toward
  int support_size_ = 0, iterations_ = 0;
  FwStopping stopping_;
  bool placed_ = false, stops_ = false;
};

}  // namespace hullft
