// Least squares of few rows. A lane has a row of A (core/corrective.h) in registers, as a tableau
// in which the rows of the support have changed places with their weights: Gauss and Jordan's step
// for the row that joins or leaves gives the best weights for the support and what the other rows
// would gain, without solving a system. It is float64, since its rounding adds up over steps.
#include "corrective_state.cuh"
#include "fw_answer.cuh"

namespace hullft {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarp;

// S: of the outputs. kRows: at least those of the pool.
template <Constraint kConstraint, typename S, int kRows>
class FwTableau {
 public:
  // row [kWarp]: of this warp.
  __device__ __forceinline__ FwTableau(const FwProblem& problem, const CorrectivePlan& plan,
                                       int64_t query, const double* products, const double* gram,
                                       const LongRows<S>& long_rows, double* row)
      : p_(problem),
        plan_(plan),
        query_(query),
        products_(products),
        gram_(gram),
        long_(long_rows),
        row_(row) {
    me_.thread = me_.lane, me_.n_threads = kWarp;
  }

  __device__ __forceinline__ void solve(const FwOutputs& out) {
    const int64_t n = p_.pool.sizes ? p_.pool.sizes[query_] : int64_t(p_.pool.width);
    if (n < 0 || n > p_.pool.width) return write_failure<S>(query_, p_.n_select, out, me_);
    n_ = int(n), is_row_ = me_.lane < n_;
    b_ = is_row_ ? products_[me_.lane] : 0.0;
    qq_ = plan_.shares.count ? long_.squares[query_] : distance(0);
    const double square = is_row_ ? gram_[me_.lane * (p_.pool.width + 1)] : 0.0;
    if (__any_sync(kFullWarp, !finite(qq_) || !finite(b_) || !finite(square)))
      return write_failure<S>(query_, p_.n_select, out, me_);
    bool goes_on = n_ > 0 && start(square);
    while (goes_on) goes_on = step();
    write(out);
  }

 private:
  static constexpr bool kSimplex = kConstraint == Constraint::kSimplex;

  // A lane's number for all lanes, in row_.
  __device__ __forceinline__ void share(double mine) {
    __syncwarp();
    row_[me_.lane] = mine;
    __syncwarp();
  }

  // A, of which the largest element is 1, and on the simplex all weight on the first row. False
  // where that is the query, and 0.
  __device__ __forceinline__ bool start(double square) {
    const int first = warp_best(is_row_ ? Best<double>{b_, me_.lane} : no_best<double>()).index;
    const double of_first = __shfl_sync(kFullWarp, square, first);
    const FactorTerms<double> terms{qq_, shift_of(plan_, qq_, of_first)};
    shift_ = terms.shift;
    square_ = factor_entry<kConstraint>(square, b_, b_, terms);
    const double largest = warp_top(is_row_ ? square_ : 0.0).value;
    scale_ = largest > 0 ? 1 / largest : 1.0;
    const double length = is_row_ ? fabs(b_) + square : 0.0;
    size_ = qq_ + warp_top(length).value;
    share(b_);
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      const bool has = is_row_ && j < n_;
      const double product = has ? gram_[j * p_.pool.width + me_.lane] : 0.0;
      tableau_[j] = has ? scale_ * factor_entry<kConstraint>(product, b_, row_[j], terms) : 0.0;
    }
    left_ = square_ *= scale_;
    target_ = scale_ * factor_target<kConstraint>(b_, terms);
    if (!kSimplex) return true;
    weight_ = me_.lane == first ? 1.0 : 0.0;
    return join(first);
  }

  // Row k joins, or leaves. `pivot`: what is left of its square, or what has taken the place of it.
  // tableau_[lane] is never read: left_ has it.
  __device__ __forceinline__ void exchange(int k, double pivot, bool joins) {
    const double sign = joins ? 1 : -1, reciprocal = 1 / pivot;
    const bool here = me_.lane == k;
    __syncwarp();
    if (here) {
#pragma unroll
      for (int j = 0; j < kRows; ++j) row_[j] = tableau_[j];
      row_[k] = pivot - sign;  // so that the loop below leaves sign * share there
    }
    __syncwarp();
    const double mine = row_[me_.lane % kRows];
    const double share = here ? 1 - sign * reciprocal : mine * reciprocal;
#pragma unroll
    for (int j = 0; j < kRows; ++j) tableau_[j] -= share * row_[j];
    left_ = here ? -reciprocal : left_ - share * mine;
    const double target = __shfl_sync(kFullWarp, target_, k);
    target_ -= share * target;
    sum_ += reciprocal * target * target;
    if (here) in_support_ = joins;
    m_ += joins ? 1 : -1;
  }

  // False where nothing of the row is left.
  __device__ __forceinline__ bool join(int k) {
    const double mine = pivot_of(left_, square_, m_, rounding_of(plan_));
    const double pivot = __shfl_sync(kFullWarp, mine, k);
    if (!(pivot > 0)) return false;
    if (me_.lane == k) raised_ = pivot - left_;
    exchange(k, pivot, true);
    return true;
  }

  __device__ __forceinline__ void leave(int k) {
    exchange(k, __shfl_sync(kFullWarp, left_, k), false);
    if (me_.lane == k) left_ -= raised_;
  }

  // A major cycle. False at the end.
  __device__ __forceinline__ bool step() {
    const bool may_join = is_row_ && !in_support_;
    const Best<double> top =
        warp_best(may_join ? Best<double>{target_, me_.lane} : no_best<double>());
    if (m_ >= plan_.slots || top.index == kNoIndex || iterations_ >= p_.max_iter) return false;
    if (is_optimal(top) || !join(top.index)) return false;
    ++iterations_;
    return correct(top.index);
  }

  // Weights that sum to 1 on the simplex.
  __device__ __forceinline__ double scaled(double weight) const {
    return kSimplex ? weight / warp_sum(weight) : weight;
  }

  // What a row's target is above 0 is the gap, but for the scale of the weights.
  __device__ __forceinline__ bool is_optimal(const Best<double>& top) const {
    const double gap = kSimplex ? top.value * shift_ / sum_ : top.value / scale_;
    if (p_.gap_tol > 0 && gap <= p_.gap_tol) return true;
    if (gap > 128 * rounding_of(plan_) * size_) return false;  // what follows takes longer
    const double wb = kSimplex ? warp_sum(scaled(weight_) * b_) : 0.0;
    // <w, c> = <q, q - X^T w> - t (1 - sum) / sum, for the sum of weights that are not scaled
    const double mean = kSimplex ? qq_ - wb - scale_ * shift_ * shift_ / sum_ + shift_ : 0.0;
    const double u = __shfl_sync(kFullWarp, b_, top.index) - mean - gap;
    return plan_.wide_products ? is_optimal<double>(gap, mean, u, wb)
                               : is_optimal<float>(gap, mean, u, wb);
  }

  template <typename P>
  static __device__ __forceinline__ bool is_optimal(double gap, double mean, double u, double wb) {
    return hullft::is_optimal<kConstraint, P>(P(gap), {P(mean + gap), P(u), P(0)},
                                              {P(wb), P(wb - mean)});
  }

  // Minor cycles, as FwCorrective has them.
  __device__ __forceinline__ bool correct(int top) {
    do {
      double a = in_support_ ? target_ : 0.0;
      const bool falls = in_support_ && !(a > 0);
      if (!__any_sync(kFullWarp, falls)) return weight_ = a, true;
      a = scaled(a), weight_ = scaled(weight_);
      if (__any_sync(kFullWarp, !finite(a))) return fails_ = true, false;
      const Best<double> nearest = warp_best(
          falls ? Best<double>{-share_until_zero(weight_, a), me_.lane} : no_best<double>());
      weight_ = me_.lane == nearest.index ? 0.0 : weight_ - nearest.value * (a - weight_);
      unsigned leaving = __ballot_sync(kFullWarp, in_support_ && !(weight_ > 0));
      for (; leaving; leaving &= leaving - 1) leave(__ffs(int(leaving)) - 1);
      if (!in_support_) weight_ = 0;
    } while (__any_sync(kFullWarp, me_.lane == top && in_support_));
    return false;
  }

  // ||q - X^T w||^2 for a support, as bits.
  __device__ __forceinline__ double distance(unsigned support) {
    constexpr int kAtOnce = 8;  // columns of a lane
    share(weight_);
    double squared = 0;
    with_rows<S>(p_.pool, query_, p_.pool.width, [&](const auto& rows) {
      const auto* q = query_at(rows, p_.query, query_);
      for (int64_t first = me_.lane; first < rows.d; first += kAtOnce * kWarp) {
        S left[kAtOnce];
        int64_t at[kAtOnce];
#pragma unroll
        for (int e = 0; e < kAtOnce; ++e) {
          at[e] = first + e * kWarp < rows.d ? first + e * kWarp : first;
          left[e] = widen_to<S>(q[at[e]]);
        }
#pragma unroll 1
        for (unsigned more = support; more; more &= more - 1) {
          const int k = __ffs(int(more)) - 1;
          const S w = S(row_[k]);
          const auto* row = rows[k];
#pragma unroll
          for (int e = 0; e < kAtOnce; ++e) left[e] -= w * widen_to<S>(row[at[e]]);
        }
#pragma unroll
        for (int e = 0; e < kAtOnce; ++e)
          if (e == 0 || at[e] != first) squared += double(left[e]) * double(left[e]);
      }
    });
    return warp_sum(squared);
  }

  // c = b - G w from the Gram matrix, whatever rounding has made of the tableau.
  __device__ __forceinline__ double correlation_of(unsigned support) {
    share(weight_);
    double c = b_;
    for (unsigned more = support; more; more &= more - 1) {
      const int k = __ffs(int(more)) - 1;
      if (is_row_) c -= row_[k] * gram_[k * p_.pool.width + me_.lane];
    }
    return c;
  }

  // ||q - X^T w||^2 = <q, q> - <w, b> - <w, c>, 0 where that is rounding. float32 rows round more.
  __device__ __forceinline__ double distance_by_products(double wc) const {
    const double squared = qq_ - warp_sum(weight_ * b_) - wc;
    return squared > 128 * epsilon<double>() * qq_ ? squared : 0.0;
  }

  __device__ __forceinline__ void write(const FwOutputs& out) {
    if (n_ > 0) weight_ = scaled(weight_);
    if (fails_ || __any_sync(kFullWarp, !finite(weight_)))
      return write_failure<S>(query_, p_.n_select, out, me_);
    const unsigned support = __ballot_sync(kFullWarp, S(weight_) > S(0));
    const int m = __popc(support);
    const double c = correlation_of(support), wc = warp_sum(weight_ * c);
    const double violation = !kSimplex && weight_ > 0 ? fabs(c) : c;
    const double top = warp_top(is_row_ ? violation : -INFINITY).value;
    const double gap = n_ > 0 ? top - (kSimplex ? wc : 0.0) : 0.0;
    const bool is_long = plan_.shares.count > 0;
    double squared = 0;
    if (sizeof(S) == 4 && plan_.wide_products)
      squared = distance_by_products(wc);
    else if (!is_long)
      squared = distance(support);
    const int64_t width = p_.pool.width;
    if (me_.lane < width) static_cast<S*>(out.weights)[query_ * width + me_.lane] = S(weight_);
    if (me_.lane == 0) write_scalars<S>(query_, m, S(sqrt(squared)), S(gap), iterations_, out);
    if (!is_long || !(S(weight_) > S(0))) return;
    const int at = __popc(support & ((1u << me_.lane) - 1));
    long_.weights[query_ * plan_.slots + at] = S(weight_);
    long_.atoms[query_ * plan_.slots + at] = me_.lane;
  }

  const FwProblem& p_;
  const CorrectivePlan& plan_;
  const int64_t query_;
  const double *const products_, *const gram_;
  const LongRows<S> long_;
  double* const row_;
  BlockThread me_;
  double tableau_[kRows];
  // The lane's row: its product with the query, its diagonal elements, its target or weight.
  double b_ = 0, square_ = 0, left_ = 0, raised_ = 0, target_ = 0, weight_ = 0;
  bool is_row_ = false, in_support_ = false;
  int n_ = 0;
  double qq_ = 0, shift_ = 0, scale_ = 1, size_ = 0;
  double sum_ = 0;  // of weights times what they had as targets
  int m_ = 0, iterations_ = 0;
  bool fails_ = false;
};

template <typename S, int kConstraint, int kRows>
__global__ void __launch_bounds__(kThreads, kRows <= 16 ? 4 : 2)
    fw_tableau_kernel(FwProblem problem, CorrectivePlan plan, unsigned char* workspace,
                      FwOutputs outputs) {
  __shared__ double rows[kWarps][kWarp];
  const int warp = int(threadIdx.x) / kWarp;
  const int64_t query = int64_t(blockIdx.x) * kWarps + warp;
  if (query >= problem.batch) return;
  const unsigned char* gram = workspace + plan.columns_offset + query * plan.column_stride;
  FwTableau<Constraint(kConstraint), S, kRows> solver(
      problem, plan, query, reinterpret_cast<const double*>(workspace) + query * problem.pool.width,
      reinterpret_cast<const double*>(gram), long_rows_of<S>(plan, workspace), rows[warp]);
  solver.solve(outputs);
}

template <typename S>
auto kernel_of(Constraint constraint, int width) {
  constexpr int kSum = int(Constraint::kSimplex), kNone = int(Constraint::kNonNegative);
  if (constraint == Constraint::kSimplex)
    return width <= 16 ? fw_tableau_kernel<S, kSum, 16> : fw_tableau_kernel<S, kSum, kTableauRows>;
  return width <= 16 ? fw_tableau_kernel<S, kNone, 16> : fw_tableau_kernel<S, kNone, kTableauRows>;
}

}  // namespace

cudaError_t launch_tableau(const FwProblem& problem, Constraint constraint,
                           const CorrectivePlan& plan, void* workspace, const FwOutputs& outputs,
                           cudaStream_t stream) {
  const int width = problem.pool.width;
  const auto kernel = problem.pool.storage == Storage::kFloat64
                          ? kernel_of<double>(constraint, width)
                          : kernel_of<float>(constraint, width);
  const int64_t blocks = (problem.batch + kWarps - 1) / kWarps;
  HULLFT_LAUNCH(kernel, dim3(unsigned(blocks)), dim3(kThreads), 0, stream, problem, plan,
                static_cast<unsigned char*>(workspace), outputs);
  return cudaGetLastError();
}

}  // namespace hullft
