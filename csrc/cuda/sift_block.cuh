// One block solves one query: the schedule of core/sift.h on the GPU. A thread keeps its candidates
// from pick to pick, so that their history needs no barrier; two barriers a pick.
#pragma once

#include "../core/sift.h"
#include "rows.cuh"
#include "selection_outputs.cuh"
#include "sift.h"

namespace hullft {

template <typename S>
struct SiftState {
  S* covariance;  // [n_targets, width], of each candidate with each target, given the picks
  S* variance;    // [width], given the picks
  S *b, *u;       // [width]: products with the mean target, and with the sum of the picks
  S *rates,
      *left;            // [n_select]: precision of a pick; variance at the targets after it
  S* shares;            // [n_select], of the pick at hand
  S* target_shares;     // [n_targets]
  int *picks, *counts;  // [n_select]; counts of the picks at their first, 0 at the others
};

inline int64_t sift_state_bytes(int64_t width, int64_t n_select, int64_t n_targets,
                                int64_t real_bytes) {
  const int64_t reals = (n_targets + 3) * width + 3 * n_select + n_targets;
  return (reals * real_bytes + 2 * n_select * int64_t(sizeof(int)) + 15) / 16 * 16;
}

template <typename S>
__device__ __forceinline__ SiftState<S> carve_sift_state(unsigned char* memory,
                                                         const SiftProblem& p) {
  const int64_t width = p.pool.width;
  SiftState<S> state;
  state.covariance = reinterpret_cast<S*>(memory);
  state.variance = state.covariance + p.n_targets * width;
  state.b = state.variance + width;
  state.u = state.b + width;
  state.rates = state.u + width;
  state.left = state.rates + p.n_select;
  state.shares = state.left + p.n_select;
  state.target_shares = state.shares + p.n_select;
  state.picks = reinterpret_cast<int*>(state.target_shares + p.n_targets);
  state.counts = state.picks + p.n_select;
  return state;
}

template <typename S>
class SiftBlock {
 public:
  // gram: the query's Gram matrix, or null. columns [n_select, width].
  __device__ __forceinline__ SiftBlock(const SiftProblem& problem, int64_t query,
                                       const SiftState<S>& state, const S* gram, S* columns,
                                       BlockScratch& scratch)
      : p_(problem), query_(query), x_(state), gram_(gram), columns_(columns), scratch_(scratch) {}

  __device__ __forceinline__ void solve(const SiftOutputs& out) {
    if (sees_nothing(p_.pool, query_)) return pick_nothing(out);
    n_ = checked_size(p_.pool, query_, me_);
    if (n_ == 0) return fail(out);
    for (int t = 0; t < p_.n_targets; ++t) multiply(-1, t, x_.covariance + t * width());
    __syncthreads();
    if (!start()) return fail(out);
    Best<double> best = best_of_start();
    for (int i = 0; i < p_.n_select; ++i) {
      if (!finite(best.value)) return fail(out);
      left_ = left_ > best.value ? left_ - best.value : 0.0;
      best = observe(i, best.index);
    }
    count();
    write(out);
  }

 private:
  __device__ __forceinline__ int64_t width() const { return p_.pool.width; }

  __device__ __forceinline__ void fail(const SiftOutputs& out) const {
    write_failure<S>(query_, p_.n_select, out.selection, me_);
    write_no_picks(S(NAN), out);
  }

  __device__ __forceinline__ void write_no_picks(S variance, const SiftOutputs& out) const {
    for (int i = me_.thread; i < p_.n_select; i += me_.n_threads) {
      out.picks[query_ * p_.n_select + i] = -1;
      static_cast<S*>(out.variance)[query_ * p_.n_select + i] = variance;
    }
  }

  // The variance at the targets stays.
  __device__ __forceinline__ void pick_nothing(const SiftOutputs& out) const {
    const S squares = S(write_nothing<S>(p_.pool, p_.query, query_, p_.n_targets, p_.n_select,
                                         out.selection, scratch_, me_));
    if (!finite(squares)) return fail(out);
    write_no_picks(squares, out);
  }

  // The rows' products with a picked row or, when that is negative, with a target.
  __device__ __forceinline__ void multiply(int picked, int target, S* out) {
    with_rows<S>(p_.pool, query_, n_, [&](const auto& rows) {
      const auto* x =
          picked < 0 ? query_at(rows, p_.query, query_) + target * rows.d : rows[picked];
      multiply_rows(rows, 0, rows.n, x, out, me_);
    });
  }

  // Prior variances; false when an input or a product is not finite: a row that is not finite makes
  // its norm so.
  __device__ __forceinline__ bool start() {
    S qq = 0;
    with_rows<S>(p_.pool, query_, n_, [&](const auto& rows) {
      qq = square_of<S>(query_at(rows, p_.query, query_), p_.n_targets * rows.d, me_);
      if (gram_) return;
      for (int k = me_.warp; k < rows.n; k += me_.n_warps) {
        S squared = 0;
        for (int64_t i = me_.lane; i < rows.d; i += kWarp)
          squared += widen_to<S>(rows[k][i]) * widen_to<S>(rows[k][i]);
        squared = warp_sum(squared);
        if (me_.lane == 0) x_.variance[k] = squared;
      }
    });
    left_ = block_sum(qq, scratch_, me_);
    bool bad = !finite(left_);
    for (int k = me_.thread; k < n_; k += me_.n_threads) {
      if (gram_) x_.variance[k] = gram_[k * width() + k];
      S b = 0;
      for (int t = 0; t < p_.n_targets; ++t) b += x_.covariance[t * width() + k];
      x_.b[k] = b / S(p_.n_targets);
      x_.u[k] = 0;
      bad = bad || !finite(x_.b[k]) || !finite(x_.variance[k]);
    }
    return !__syncthreads_or(bad);
  }

  // What observing candidate k would bring.
  __device__ __forceinline__ S reduction_at_targets(int k) const {
    const S rate = precision(x_.variance[k], S(p_.noise));
    S sum = 0;
    for (int t = 0; t < p_.n_targets; ++t)
      sum += variance_reduction(x_.covariance[t * width() + k], rate);
    return sum;
  }

  __device__ __forceinline__ Best<double> best_of_start() {
    Best<double> best = no_best<double>();
    for (int k = me_.thread; k < n_; k += me_.n_threads)
      see(best, double(reduction_at_targets(k)), k);
    return block_best(best, scratch_, me_);
  }

  // Conditions every candidate on pick number i and finds the next.
  __device__ __forceinline__ Best<double> observe(int i, int s) {
    S* const column = columns_ + i * width();
    if (!gram_) multiply(s, 0, column);
    const S rate = precision(x_.variance[s], S(p_.noise));
    for (int j = me_.thread; j < i; j += me_.n_threads)
      x_.shares[j] = columns_[j * width() + s] * x_.rates[j];
    for (int t = me_.thread; t < p_.n_targets; t += me_.n_threads)
      x_.target_shares[t] = x_.covariance[t * width() + s] * rate;
    if (me_.thread == 0) x_.picks[i] = s, x_.rates[i] = rate, x_.left[i] = S(left_);
    __syncthreads();
    Best<double> best = no_best<double>();
    for (int k = me_.thread; k < n_; k += me_.n_threads) {
      const S reduction = condition(i, gram_ ? gram_[s * width() + k] : column[k], rate, column, k);
      see(best, double(reduction), k);
    }
    return block_best(best, scratch_, me_);
  }

  // Observes the pick for candidate k; what observing k next would bring.
  __device__ __forceinline__ S condition(int i, S product, S rate, S* column, int k) {
    x_.u[k] += product;
    S c = product;
#pragma unroll 4
    for (int j = 0; j < i; ++j)
      c = condition_covariance(c, columns_[j * width() + k], x_.shares[j]);
    column[k] = c;
    for (int t = 0; t < p_.n_targets; ++t) {
      S& covariance = x_.covariance[t * width() + k];
      covariance = condition_covariance(covariance, c, x_.target_shares[t]);
    }
    x_.variance[k] = condition_variance(x_.variance[k], c, rate);
    return reduction_at_targets(k);
  }

  // How often the row of pick i was picked, at its first pick; 0 at later ones.
  __device__ __forceinline__ void count() {
    for (int i = me_.thread; i < p_.n_select; i += me_.n_threads) {
      int times = 0;
      bool first = true;
      for (int j = 0; j < p_.n_select; ++j) {
        if (x_.picks[j] != x_.picks[i]) continue;
        ++times;
        first = first && j >= i;
      }
      x_.counts[i] = first ? times : 0;
    }
    __syncthreads();
  }

  // ||mean target - mean of the picks||, from the rows.
  __device__ __forceinline__ double residual() {
    S squared = 0;
    with_rows<S>(p_.pool, query_, n_, [&](const auto& rows) {
      const auto* q = query_at(rows, p_.query, query_);
      for (int64_t i = me_.thread; i < rows.d; i += me_.n_threads) {
        S target = 0, mean = 0;
        for (int t = 0; t < p_.n_targets; ++t) target += widen_to<S>(q[t * rows.d + i]);
        for (int j = 0; j < p_.n_select; ++j) mean += widen_to<S>(rows[x_.picks[j]][i]);
        const S r = target / S(p_.n_targets) - mean / S(p_.n_select);
        squared += r * r;
      }
    });
    return sqrt(block_sum(squared, scratch_, me_));
  }

  __device__ __forceinline__ double gap() {
    const S share = S(1) / S(p_.n_select);
    const auto correlation = [&](int k) { return double(x_.b[k] - share * x_.u[k]); };
    Best<double> best = no_best<double>();
    for (int k = me_.thread; k < n_; k += me_.n_threads) see(best, correlation(k), k);
    double mean = 0;
    for (int i = me_.thread; i < p_.n_select; i += me_.n_threads)
      mean += correlation(x_.picks[i]) / double(p_.n_select);
    const double largest = block_best(best, scratch_, me_).value;
    return largest - block_sum(mean, scratch_, me_);
  }

  __device__ __forceinline__ void write(const SiftOutputs& out) {
    const int64_t first = query_ * p_.n_select;
    int distinct = 0;
    for (int j = 0; j < p_.n_select; ++j) distinct += x_.counts[j] > 0;
    const FwOutputs& sel = out.selection;
    for (int i = me_.thread; i < p_.n_select; i += me_.n_threads) {
      out.picks[first + i] = x_.picks[i];
      static_cast<S*>(out.variance)[first + i] = x_.left[i];
      if (i >= distinct) put(sel, first + i, -1, 0);
      if (x_.counts[i] > 0) put(sel, first + rank(i), x_.picks[i], x_.counts[i]);
    }
    const double off = residual(), above = gap();
    if (me_.thread == 0)
      write_scalars<S>(query_, distinct, S(off), S(above), p_.n_select, out.selection);
  }

  __device__ __forceinline__ void put(const FwOutputs& out, int64_t at, int atom, int times) const {
    out.indices[at] = atom;
    out.counts[at] = times;
    static_cast<S*>(out.weights)[at] = S(times) / S(p_.n_select);
  }

  // Rows picked more often, or equally often and of lower index, come before.
  __device__ __forceinline__ int rank(int i) const {
    int before = 0;
    for (int j = 0; j < p_.n_select; ++j) {
      const bool more = x_.counts[j] > x_.counts[i];
      before += more || (x_.counts[j] == x_.counts[i] && x_.picks[j] < x_.picks[i]);
    }
    return before;
  }

  const SiftProblem& p_;
  const int64_t query_;
  const SiftState<S>& x_;
  const S* const gram_;
  S* const columns_;
  BlockScratch& scratch_;
  const BlockThread me_;
  int n_ = 0;
  double left_ = 0;  // of the variance at the targets
};

}  // namespace hullft
