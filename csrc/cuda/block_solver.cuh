// What the solvers that give a query a block share: frank_wolfe.cu and fw_corrective.cuh. All warps
// take part in products, residuals and updates; between two barriers warp 0 decides what comes
// next.
#pragma once

#include "fw_answer.cuh"

namespace hullft {

// Solver derives from it, and has clear() and update() for all warps, decide(action) for warp 0,
// column(row of the support), and write(out). Steps: what every lane of warp 0 holds. R: of the
// outputs, and of rows that are not narrower.
template <typename Solver, typename S, typename State, typename Steps, typename R = S>
class BlockSolver : protected Steps {
 public:
  // memory: the state's, if it is global. products: of the rows with the query, square: the
  // query's; null where the block makes them. columns: the Gram matrix, or where to keep columns.
  __device__ __forceinline__ BlockSolver(const FwProblem& problem, const SolverPlan& plan,
                                         int64_t query, unsigned char* memory, const State& state,
                                         const S* products, double* square, S* columns,
                                         FwControl<S>& control, BlockScratch& scratch)
      : p_(problem),
        plan_(plan),
        query_(query),
        pause_(memory ? pause_of<Pause>(plan, memory) : nullptr),
        x_(state),
        products_(products),
        square_(square),
        columns_(columns),
        control_(control),
        scratch_(scratch) {}

  // Every product with the rows stands at one place in this loop: inlined twice, it would cost the
  // loop its registers.
  __device__ __forceinline__ void solve(const FwOutputs& out) {
    bool ready = pause_ != nullptr;  // the products are: the launch before has computed them
    if (ready && plan_.round > 0) {
      if (pause_->round != plan_.round - 1) return;  // it has ended
      resume();
    } else {
      if (sees_nothing(p_.pool, query_)) {
        write_nothing<R>(p_.pool, p_.query, query_, 1, p_.n_select, out, scratch_, me_);
        return;
      }
      n_ = checked_size(p_.pool, query_, me_);
      if (n_ == 0) return fail(out);
      self().clear();
    }
    while (control_.action < Action::kDone) {
      const Action action = control_.action;
      if (action != Action::kStep && action != Action::kResidual) {
        if (!ready && pause_ && plan_.round + 1 < plan_.rounds) return pause();
        multiply(action, ready);
        ready = false;
      }
      if (action == Action::kResidual)
        residual_ =
            exact_residual<R>(p_, query_, n_, x_.table, control_.support_size, scratch_, me_);
      if (action == Action::kCorrelate && !correlations_finite()) return fail(out);
      if (action == Action::kCorrelate || action == Action::kStep) self().update();
      __syncthreads();
      if (me_.warp == 0) self().decide(action);
      __syncthreads();
    }
    if (control_.action == Action::kFail) return fail(out);
    self().write(out);
    const int m = control_.support_size < p_.max_support ? control_.support_size : p_.max_support;
    if (me_.thread == 0)
      write_scalars<R>(query_, m, R(residual_), R(control_.gap), control_.iterations, out);
  }

 protected:
  struct Pause : FwPause<S> {
    Steps steps;
  };

  // Each warp's largest correlation, and the largest over the pool.
  __device__ __forceinline__ void publish_best(Best<S> best) {
    best = warp_best(best);
    if (me_.lane != 0) return;
    control_.best_value[me_.warp] = best.value;
    control_.best_index[me_.warp] = best.index;
  }
  __device__ __forceinline__ Best<S> best_of_pool() const {
    Best<S> best = no_best<S>();
    if (me_.lane < me_.n_warps)
      best = {control_.best_value[me_.lane], control_.best_index[me_.lane]};
    return warp_best(best);
  }

  // `spare`: elements from b on that are free after the steps.
  __device__ __forceinline__ void write_selection(int64_t spare, const FwOutputs& out) {
    const auto b = [this](int atom) { return x_.b[atom]; };
    const auto of_entry = [this](int entry) { return self().column(entry); };
    const FwAnswer<S> answer{x_.table, x_.counts, x_.b, spare, control_.support_size};
    write_answer(p_, query_, answer, b, of_entry, out, me_);
  }

  const FwProblem& p_;
  const SolverPlan& plan_;
  const int64_t query_;
  Pause* const pause_;
  const State x_;
  const S* const products_;
  double* const square_;
  S* const columns_;
  FwControl<S>& control_;
  BlockScratch& scratch_;
  const BlockThread me_;
  int n_ = 0;
  S qq_ = 0, residual_ = 0;

 private:
  __device__ __forceinline__ Solver& self() { return static_cast<Solver&>(*this); }

  __device__ __forceinline__ void fail(const FwOutputs& out) const {
    write_failure<R>(query_, p_.n_select, out, me_);
  }

  // Until the device has computed the column of the picked row.
  __device__ __forceinline__ void pause() const {
    if (me_.thread != 0) return;
    const FwPause<S> pause{plan_.round, control_.picked, control_.picked_entry, n_, qq_};
    *pause_ = {pause, *this};
  }

  __device__ __forceinline__ void resume() {
    n_ = pause_->n, qq_ = pause_->qq;
    static_cast<Steps&>(*this) = pause_->steps;
    if (me_.thread == 0) control_.action = Action::kColumn;
    __syncthreads();
  }

  // The rows' products with the query into b, or with the picked row into its column, where they
  // are not ready.
  __device__ __forceinline__ void multiply(Action action, bool ready) {
    const bool correlate = action == Action::kCorrelate;
    if (ready && !correlate) return;
    S* out = correlate ? x_.b : columns_ + int64_t(control_.picked_entry) * p_.pool.width;
    S qq = 0;
    with_rows<R>(p_.pool, query_, n_, [&](const auto& rows) {
      const auto* x = correlate ? query_at(rows, p_.query, query_) : rows[control_.picked];
      if (!products_ && !ready) multiply_rows(rows, 0, rows.n, x, out, me_);
      if (correlate && !square_) qq = square_of<S>(x, rows.d, me_);
    });
    if (!correlate) return;
    if (products_)
      for (int k = me_.thread; k < n_; k += me_.n_threads) x_.b[k] = products_[k];
    qq_ = square_ ? S(*square_) : S(block_sum(qq, scratch_, me_));
  }

  // A row that is not finite makes its correlation so, whatever the query: no pass of its own.
  __device__ __forceinline__ bool correlations_finite() {
    bool bad = !finite(qq_);
    for (int k = me_.thread; k < n_; k += me_.n_threads) bad = bad || !finite(x_.b[k]);
    return !__syncthreads_or(bad);
  }
};

}  // namespace hullft
