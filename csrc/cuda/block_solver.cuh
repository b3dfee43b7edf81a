// What the solvers that give a query a block share: frank_wolfe.cu and fw_corrective.cuh. All warps
// take part in products, residuals and updates; between two barriers warp 0 decides what comes
// next.
#pragma once

#include "fw_answer.cuh"

namespace hullft {

// Solver derives from it, and has clear() and update() for all warps, decide(action) for warp 0,
// column(row of the support), and write(out). Steps: what every lane of warp 0 holds.
template <typename Solver, typename S, typename State, typename Steps>
class BlockSolver : protected Steps {
 public:
  // memory: the state's, if it is global. products: of the rows with the query, square: the
  // query's; null where the block makes them. columns: the Gram matrix, or where to keep columns.
  __device__ __forceinline__ BlockSolver(const FwProblem& problem, const SolverPlan& plan,
                                         int64_t query, unsigned char* memory, const State& state,
                                         const S* products, const S* square, S* columns,
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
        write_nothing<S>(p_.pool, p_.query, query_, 1, p_.n_select, out, scratch_, me_);
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
        residual_ = exact_residual(p_, query_, n_, x_.table, control_.support_size, scratch_, me_);
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
      write_scalars<S>(query_, m, residual_, control_.gap, control_.iterations, out);
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
  const S *const products_, *const square_;
  S* const columns_;
  FwControl<S>& control_;
  BlockScratch& scratch_;
  const BlockThread me_;
  int n_ = 0;
  S qq_ = 0, residual_ = 0;
  S* residuals_ = nullptr;  // [d]: q - X^T w, of kRefine

 private:
  __device__ __forceinline__ Solver& self() { return static_cast<Solver&>(*this); }

  __device__ __forceinline__ void fail(const FwOutputs& out) const {
    write_failure<S>(query_, p_.n_select, out, me_);
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

  // q - X^T w, of which terms of opposite signs may leave little.
  __device__ __forceinline__ const float* subtract_support(const Rows<float>& rows) const {
    const float* q = query_at(rows, p_.query, query_);
    for (int64_t i = me_.thread; i < rows.d; i += me_.n_threads) {
      double left = q[i];
      for (int j = 0; j < control_.support_size; ++j)
        left -= double(x_.table.weight[j]) * double(rows[x_.table.atom[j]][i]);
      residuals_[i] = float(left);
    }
    __syncthreads();
    return residuals_;
  }

  // The rows' products with the query into b, with the residual into u, or with the picked row into
  // its column, where they are not ready.
  __device__ __forceinline__ void multiply(Action action, bool ready) {
    const bool correlate = action == Action::kCorrelate;
    const bool refine = residuals_ && action == Action::kRefine;
    if (ready && !correlate) return;
    S* out = refine ? x_.u : x_.b;
    if (!correlate && !refine) out = columns_ + int64_t(control_.picked_entry) * p_.pool.width;
    S qq = 0;
    with_rows<S>(p_.pool, query_, n_, [&](const auto& rows) {
      const auto* x =
          correlate || refine ? query_at(rows, p_.query, query_) : rows[control_.picked];
      if constexpr (std::is_same_v<decltype(x), const float*>)
        if (refine) x = subtract_support(rows);
      if ((!products_ && !ready) || refine) multiply_rows(rows, 0, rows.n, x, out, me_);
      if (correlate && !square_) qq = square_of<S>(x, rows.d, me_);
    });
    if (!correlate) return;
    if (products_)
      for (int k = me_.thread; k < n_; k += me_.n_threads) x_.b[k] = products_[k];
    qq_ = square_ ? *square_ : S(block_sum(qq, scratch_, me_));
  }

  // A row that is not finite makes its correlation so, whatever the query: no pass of its own.
  __device__ __forceinline__ bool correlations_finite() {
    bool bad = !finite(qq_);
    for (int k = me_.thread; k < n_; k += me_.n_threads) bad = bad || !finite(x_.b[k]);
    return !__syncthreads_or(bad);
  }
};

}  // namespace hullft
