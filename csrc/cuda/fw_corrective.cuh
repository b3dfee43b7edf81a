// One block solves one query to the optimum: the schedule of core/corrective.h on the GPU. All
// warps compute u = G w anew in each major cycle; warp 0 lets a row join the support and solves for
// its weights.
#pragma once

#include "block_solver.cuh"
#include "corrective_state.cuh"

namespace hullft {

// R: of the outputs.
template <Constraint kConstraint, typename S, typename R>
class FwCorrective : public BlockSolver<FwCorrective<kConstraint, S, R>, S, CorrectiveState<S>,
                                        CorrectiveSteps<S>, R> {
  using Base =
      BlockSolver<FwCorrective<kConstraint, S, R>, S, CorrectiveState<S>, CorrectiveSteps<S>, R>;
  friend Base;
  using Base::columns_, Base::control_, Base::me_, Base::n_, Base::p_, Base::plan_, Base::qq_;
  using Base::fails_, Base::gap_, Base::holds_top_, Base::it_, Base::iterations_, Base::m_;
  using Base::query_, Base::residual_, Base::stops_, Base::terms_, Base::top_, Base::x_;
  using Base::y_square_;

 public:
  __device__ __forceinline__ FwCorrective(const FwProblem& problem, const SolverPlan& plan,
                                          int64_t query, unsigned char* memory,
                                          const CorrectiveState<S>& state, const S* products,
                                          S* columns, const LongRows<R>& rows,
                                          FwControl<S>& control, BlockScratch& scratch)
      : Base(problem, plan, query, memory, state, plan.gram ? products : nullptr,
             plan.shares.count > 0 ? rows.squares + query : nullptr, columns, control, scratch),
        long_(rows) {}

 private:
  static constexpr bool kSimplex = kConstraint == Constraint::kSimplex;
  static constexpr int kColumnsAtOnce = 8;

  __device__ __forceinline__ bool is_long() const { return Base::square_ != nullptr; }

  // ---- all warps

  __device__ __forceinline__ void clear() {
    for (int i = me_.thread; i < plan_.slots; i += me_.n_threads) x_.place[i] = i;
    if (me_.thread == 0) control_.action = Action::kCorrelate, control_.support_size = 0;
    __syncthreads();
  }

  __device__ __forceinline__ const S* column(int row) const {
    return columns_ + int64_t(x_.place[row]) * p_.pool.width;
  }

  // u = G w, and each warp's largest correlation.
  __device__ __forceinline__ void update() {
    const int m = control_.support_size;
    Best<S> best = no_best<S>();
    for (int k = me_.thread; k < n_; k += me_.n_threads) {
      S u = 0;
      for (int first = 0; first < m; first += kColumnsAtOnce) {
#pragma unroll
        for (int r = 0; r < kColumnsAtOnce; ++r) {
          const int i = first + r < m ? first + r : m - 1;
          const S w = first + r < m ? x_.table.weight[i] : S(0);
          u += w * column(i)[k];
        }
      }
      x_.u[k] = u;
      see(best, x_.b[k] - u, k);
    }
    Base::publish_best(best);
  }

  // ---- warp 0: every lane holds the same members

  // kColumn: the row of largest correlation joins, once its column is there.
  __device__ __forceinline__ void decide(Action action) {
    Action next = action;
    if (action == Action::kCorrelate || action == Action::kStep) next = begin_cycle();
    if (action == Action::kResidual) next = after_residual();
    const bool has_column = plan_.gram || action == Action::kColumn;
    if (next == Action::kColumn && has_column) next = enter();
    if (me_.lane != 0) return;
    control_.action = next;
    if (next == Action::kColumn) control_.picked = top_.index, control_.picked_entry = x_.place[m_];
    control_.support_size = m_, control_.iterations = iterations_;
    control_.gap = gap_;
  }

  __device__ __forceinline__ FwStopping rules() const { return stopping_of<S>(p_, double(qq_)); }

  __device__ __forceinline__ Action begin_cycle() {
    top_ = Base::best_of_pool();
    if (kSimplex && m_ == 0) return Action::kColumn;
    measure();
    if (!finite(top_.value) || !finite(gap_) || !finite(it_.wu)) return Action::kFail;
    stops_ = stops_ || is_last();
    if (stops_ && is_long()) return end_of_long_rows();
    const bool may_be_within = p_.tol > 0 && double(squared_residual(it_, qq_)) <= rules().within;
    return stops_ || may_be_within ? Action::kResidual : Action::kColumn;
  }

  // The residual by products, unless little of the rows is left: that has kernels of its own.
  __device__ __forceinline__ Action end_of_long_rows() {
    S largest = qq_;
    for (int i = me_.lane; i < m_; i += kWarp)
      largest = larger(largest, column(i)[x_.table.atom[i]]);
    const S squared = squared_residual(it_, qq_);
    residual_ = sqrt(squared);
    const bool stands = double(squared) >= kExactShare * double(warp_top(largest).value);
    if (me_.lane == 0) *Base::square_ = stands ? 0 : -1;
    return Action::kDone;
  }

  // <w, b>, <w, u>, the gap, and whether the support has the row of largest correlation.
  __device__ __forceinline__ void measure() {
    S wb = 0, wu = 0, lowest = 0;
    bool has = false;
    for (int i = me_.lane; i < m_; i += kWarp) {
      const int k = x_.table.atom[i];
      const S b = x_.b[k], u = x_.u[k], w = x_.table.weight[i];
      wb += w * b, wu += w * u;
      lowest = larger(u - b, lowest);
      has = has || k == top_.index;
    }
    it_ = {warp_sum(wb), warp_sum(wu)};
    holds_top_ = __any_sync(kFullWarp, has);
    // Without the sum: the largest violation of the conditions of an optimum. No correlation is
    // above 0, and the support's are 0.
    gap_ =
        kSimplex ? top_.value - mean_correlation(it_) : larger(top_.value, warp_top(lowest).value);
  }

  __device__ __forceinline__ bool is_last() const {
    if (holds_top_ || m_ >= plan_.slots || iterations_ >= p_.max_iter) return true;
    if (double(gap_) <= rules().gap_floor) return true;
    const S slope = kSimplex ? gap_ : top_.value, u = x_.u[top_.index];
    if (plan_.wide_products) return is_optimal<kConstraint, S>(slope, {top_.value, u, S(0)}, it_);
    return is_optimal<kConstraint, float>(float(slope), {float(top_.value), float(u), 0.0f},
                                          {float(it_.wb), float(it_.wu)});
  }

  __device__ __forceinline__ Action after_residual() const {
    const bool within_tol = double(residual_) < rules().residual;
    return stops_ || within_tol ? Action::kDone : Action::kColumn;
  }

  // The top row joins. On the simplex the first one has all of the weight.
  __device__ __forceinline__ Action enter() {
    const bool first = kSimplex && m_ == 0;
    if (first) terms_ = {qq_, shift_of(plan_, qq_, column_of_top()[top_.index])};
    bool goes_on = join();
    if (first) {
      if (me_.lane == 0) x_.table.weight[0] = 1;
      m_ = 1;
    } else if (goes_on) {
      ++iterations_;
      goes_on = correct();
    }
    __syncwarp();
    stops_ = !goes_on;
    return fails_ ? Action::kFail : Action::kStep;
  }

  __device__ __forceinline__ const S* column_of_top() const {
    const int place = plan_.gram ? top_.index : x_.place[m_];
    return columns_ + int64_t(place) * p_.pool.width;
  }

  __device__ __forceinline__ S* factor_row(int i) const {
    return x_.factor + int64_t(i) * (i + 1) / 2;
  }

  // The top row as the last one of the support, with no weight. False where it is the point from
  // which the rows count.
  __device__ __forceinline__ bool join() {
    const S* column = column_of_top();
    const S b = x_.b[top_.index];
    S* row = factor_row(m_);
    for (int i = me_.lane; i < m_; i += kWarp) {
      const int k = x_.table.atom[i];
      row[i] = factor_entry<kConstraint>(column[k], x_.b[k], b, terms_);
    }
    const S square = factor_entry<kConstraint>(column[top_.index], b, b, terms_);
    __syncwarp();
    const Products products = solve_lower(row);
    const S left = square - products.squares;
    const S pivot = pivot_of(left, square, m_, S(rounding_of(plan_)));
    const S diagonal = sqrt(pivot);
    const S y = (factor_target<kConstraint>(b, terms_) - products.with_y) / diagonal;
    if (me_.lane == 0) {
      row[m_] = diagonal, x_.y[m_] = y;
      x_.table.atom[m_] = top_.index, x_.table.weight[m_] = 0;
      if (plan_.gram) x_.place[m_] = top_.index;
    }
    __syncwarp();
    if (!finite(left)) fails_ = true;
    if (!(pivot > S(0))) return false;
    y_square_ += y * y;
    ++m_;
    return true;
  }

  struct Products {
    S squares, with_y;
  };

  // z = L^-1 z, <z, z> and <z, y>. A lane has one of 32 rows at a time. Their starts i (i + 1) / 2
  // differ modulo 32, so that a column of them has no bank conflict.
  __device__ __forceinline__ Products solve_lower(S* z) const {
    S squares = 0, with_y = 0;
    for (int first = 0; first < m_; first += kWarp) {
      const int i = first + me_.lane, n = m_ - first < kWarp ? m_ - first : kWarp;
      const bool mine = me_.lane < n;
      const S* row = factor_row(mine ? i : m_ - 1);
      S value = mine ? z[i] : S(0);
#pragma unroll 4
      for (int j = 0; j < first; ++j) value -= row[j] * z[j];
      const S reciprocal = S(1) / row[mine ? i : m_ - 1];
#pragma unroll 4
      for (int j = 0; j < n; ++j) {
        const S element = me_.lane > j ? row[first + j] : S(0);
        value -= element * __shfl_sync(kFullWarp, value * reciprocal, j);
      }
      value *= reciprocal;
      if (mine) z[i] = value, squares += value * value, with_y += value * x_.y[i];
      __syncwarp();
    }
    return {warp_sum(squares), warp_sum(with_y)};
  }

  // solution = L^-T y
  __device__ __forceinline__ void solve_upper() const {
    for (int first = (m_ - 1) / kWarp * kWarp; first >= 0; first -= kWarp) {
      const int i = first + me_.lane, n = m_ - first < kWarp ? m_ - first : kWarp;
      const bool mine = me_.lane < n;
      S value = mine ? x_.y[i] : S(0);
#pragma unroll 4
      for (int j = first + n; j < m_; ++j) value -= factor_row(j)[i] * x_.solution[j];
      const S reciprocal = S(1) / (mine ? factor_row(i)[i] : S(1));
      const S* of_row = factor_row(first + n - 1) + i;
#pragma unroll 4
      for (int j = n - 1; j >= 0; --j) {
        const S element = me_.lane < j ? *of_row : S(0);
        of_row -= first + j;  // to the row before
        value -= element * __shfl_sync(kFullWarp, value * reciprocal, j);
      }
      if (mine) x_.solution[i] = value * reciprocal;
      __syncwarp();
    }
  }

  // Minor cycles: moves the weights to the best for the support, whose rows leave where that would
  // take more than their weight. False when the row that joined leaves, which is no progress.
  __device__ __forceinline__ bool correct() {
    do {
      solve_upper();
      if (take_solution(kSimplex ? terms_.shift / y_square_ : S(1))) return true;
    } while (!fails_ && m_ > 0 && x_.table.atom[m_ - 1] == top_.index);
    return false;
  }

  // False where only a part of the way leaves the weights at least 0.
  __device__ __forceinline__ bool take_solution(S scale) {
    bool known = true, positive = true;
    for (int i = me_.lane; i < m_; i += kWarp) {
      const S a = x_.solution[i] * scale;
      x_.solution[i] = a;
      known = known && finite(a), positive = positive && a > S(0);
    }
    fails_ = fails_ || __any_sync(kFullWarp, !known);
    if (fails_) return false;
    if (__any_sync(kFullWarp, !positive)) {
      step_toward_solution();
      return false;
    }
    for (int i = me_.lane; i < m_; i += kWarp) x_.table.weight[i] = x_.solution[i];
    return true;
  }

  // As far as the weights stay at least 0.
  __device__ __forceinline__ void step_toward_solution() {
    Best<S> nearest = no_best<S>();
    for (int i = me_.lane; i < m_; i += kWarp) {
      const S a = x_.solution[i];
      if (!(a > S(0))) see(nearest, -share_until_zero(x_.table.weight[i], a), x_.table.atom[i]);
    }
    nearest = warp_best(nearest);
    const S share = -nearest.value;
    for (int i = me_.lane; i < m_; i += kWarp) {
      const S w = x_.table.weight[i];
      const bool leaves = x_.table.atom[i] == nearest.index;
      x_.table.weight[i] = leaves ? S(0) : w + share * (x_.solution[i] - w);
    }
    __syncwarp();
    for (int i = m_ - 1; i >= 0; --i)
      if (!(x_.table.weight[i] > S(0))) leave(i);
    y_square_ = 0;
    for (int i = me_.lane; i < m_; i += kWarp) y_square_ += x_.y[i] * x_.y[i];
    y_square_ = warp_sum(y_square_);
  }

  // The rows below move up. Their last two elements are turned into one, column by column.
  __device__ __forceinline__ void leave(int row) {
    const int freed = x_.place[row];
    __syncwarp();
    --m_;
    for (int j = row; j < m_; ++j) {
      S* below = factor_row(j + 1);
      const Rotation<S> rotation = rotation_of(below[j], below[j + 1]);
      __syncwarp();
      for (int i = j + 1 + me_.lane; i <= m_; i += kWarp)
        rotate(rotation, factor_row(i)[j], factor_row(i)[j + 1]);
      if (me_.lane == 0) {
        rotate(rotation, x_.y[j], x_.y[j + 1]);
        x_.table.atom[j] = x_.table.atom[j + 1], x_.table.weight[j] = x_.table.weight[j + 1];
        x_.place[j] = x_.place[j + 1];
      }
      __syncwarp();
      for (int i = me_.lane; i <= j; i += kWarp) factor_row(j)[i] = below[i];
    }
    if (me_.lane == 0) x_.place[m_] = freed;
    __syncwarp();
  }

  // ---- all warps

  __device__ __forceinline__ void write(const FwOutputs& out) {
    const int m = control_.support_size;
    bool dense = true;
    if constexpr (std::is_same_v<S, R>) {
      dense = !out.indices;
      if (!dense) Base::write_selection(x_.y - x_.b, out);
    }
    if (dense) write_dense(m, out);
    if (!is_long()) return;
    for (int i = me_.thread; i < m; i += me_.n_threads) {
      long_.weights[query_ * plan_.slots + i] = R(x_.table.weight[i]);
      long_.atoms[query_ * plan_.slots + i] = x_.table.atom[i];
    }
  }

  __device__ __forceinline__ void write_dense(int m, const FwOutputs& out) const {
    R* weights = static_cast<R*>(out.weights) + query_ * p_.pool.width;
    for (int k = me_.thread; k < p_.pool.width; k += me_.n_threads) weights[k] = 0;
    __syncthreads();
    for (int i = me_.thread; i < m; i += me_.n_threads)
      weights[x_.table.atom[i]] = R(x_.table.weight[i]);
  }

  const LongRows<R> long_;
};

}  // namespace hullft
