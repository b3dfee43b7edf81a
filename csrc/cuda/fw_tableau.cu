// Least squares of few rows. A lane has a row of A (core/corrective.h) in registers, as a tableau
// in which the rows of the support have changed places with their weights: Gauss and Jordan's step
// for the row that joins or leaves gives the best weights for the support and what the other rows
// would gain, without solving a system. It is float64, since its rounding adds up over steps.
//
// A warp solves one, two or four queries in step: in each turn every query that has not ended lets
// one row join or leave. So all lanes take part in every shuffle.
#include "corrective_state.cuh"
#include "fw_answer.cuh"

namespace hullft {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarp;

// S: of the outputs. kRows: lanes of a query, at least the rows of its pool.
template <Constraint kConstraint, typename S, int kRows>
class FwTableau {
 public:
  // row [kRows]: of this query. Past the end of a batch the last query is solved for nothing.
  __device__ __forceinline__ FwTableau(const FwProblem& problem, const SolverPlan& plan,
                                       int64_t query, const double* products, const double* gram,
                                       const LongRows<S>& long_rows, double* row)
      : p_(problem),
        plan_(plan),
        query_(query),
        products_(products),
        gram_(gram),
        long_(long_rows),
        row_(row) {
    first_lane_ = me_.lane / kRows * kRows;
    me_.thread = me_.lane -= first_lane_, me_.n_threads = kRows;
  }

  __device__ __forceinline__ void solve(const FwOutputs& out, bool exists) {
    const int64_t n = p_.pool.sizes ? p_.pool.sizes[query_] : int64_t(p_.pool.width);
    const bool in_range = n >= 0 && n <= p_.pool.width;
    n_ = in_range ? int(n) : 0, is_row_ = me_.lane < n_;
    b_ = is_row_ ? products_[me_.lane] : 0.0;
    qq_ = plan_.shares.count ? long_.squares[query_] : distance(0);
    const double square = is_row_ ? gram_[me_.lane * (p_.pool.width + 1)] : 0.0;
    fails_ = !in_range || lanes(!finite(qq_) || !finite(b_) || !finite(square));
    start(square);
    bool goes_on = exists && !fails_ && n_ > 0;
    do {
      runs_ = goes_on;
      load();
      while (__any_sync(kFullWarp, runs_)) turn();
      correlate(goes_on);
      goes_on = is_inexact() && goes_on;
    } while (__any_sync(kFullWarp, goes_on));
    write(out, exists);
  }

 private:
  static constexpr bool kSimplex = kConstraint == Constraint::kSimplex;

  // ---- of the lanes of a query

  // A lane's number for all lanes, in row_.
  __device__ __forceinline__ void share(double mine) {
    __syncwarp();
    row_[me_.lane] = mine;
    __syncwarp();
  }

  __device__ __forceinline__ unsigned lanes(bool has) const {
    return __ballot_sync(kFullWarp, has) >> first_lane_ & unsigned((uint64_t(1) << kRows) - 1);
  }

  // Of any lane where there is none such.
  __device__ __forceinline__ double of_lane(double mine, int lane) const {
    return __shfl_sync(kFullWarp, mine, first_lane_ + lane % kRows);
  }

  __device__ __forceinline__ double sum(double mine) const {
#pragma unroll
    for (int apart = kRows / 2; apart > 0; apart /= 2)
      mine += __shfl_xor_sync(kFullWarp, mine, apart);
    return mine;
  }

  __device__ __forceinline__ double largest(double mine) const {
#pragma unroll
    for (int apart = kRows / 2; apart > 0; apart /= 2)
      mine = larger(mine, __shfl_xor_sync(kFullWarp, mine, apart));
    return mine;
  }

  __device__ __forceinline__ Best<double> best(bool has, double mine) const {
    const double value = largest(has ? mine : -INFINITY);
    const unsigned here = lanes(has && mine == value);
    return {value, here ? __ffs(int(here)) - 1 : kNoIndex};
  }

  // The lane of the largest number above 0, up to its 20th bit, the lowest on ties: half of the
  // instructions of best(). If no number is above 0, it is some lane.
  __device__ __forceinline__ int large_lane(bool has, double mine) const {
    uint64_t bits;
    memcpy(&bits, &mine, sizeof bits);
    const int upper = has ? int(bits >> 32) : INT32_MIN;
    int top = upper;
#pragma unroll
    for (int apart = kRows / 2; apart > 0; apart /= 2)
      top = larger(top, __shfl_xor_sync(kFullWarp, top, apart));
    const unsigned here = lanes(has && upper == top);
    return here ? __ffs(int(here)) - 1 : kNoIndex;
  }

  // ---- a solve

  // On the simplex all weight is on the first row.
  __device__ __forceinline__ void start(double square) {
    const int first = best(is_row_, b_).index;
    const FactorTerms<double> terms{qq_, shift_of(plan_, qq_, of_lane(square, first))};
    shift_ = terms.shift;
    square_ = is_row_ ? factor_entry<kConstraint>(square, b_, b_, terms) : 0.0;
    const double most = largest(square_);
    scale_ = most > 0 ? 1 / most : 1.0;
    square_ *= scale_;
    size_ = qq_ + largest(is_row_ ? fabs(b_) + square : 0.0);
    weight_ = kSimplex && me_.lane == first ? 1.0 : 0.0;
  }

  // A, of which the largest element is 1. The rows that have weight are to join.
  __device__ __forceinline__ void load() {
    const FactorTerms<double> terms{qq_, shift_};
    share(b_);
    const double* column = gram_ + me_.lane;
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      const bool has = is_row_ && j < n_;
      const double product = has ? *column : 0.0;
      column += p_.pool.width;
      tableau_[j] = has ? scale_ * factor_entry<kConstraint>(product, b_, row_[j], terms) : 0.0;
    }
    left_ = square_, target_ = kSimplex ? 1.0 : scale_ * b_;
    joining_ = lanes(weight_ > 0), leaving_ = 0;
    in_support_ = has_left_ = false, m_ = 0, sum_ = 0;
  }

  __device__ __forceinline__ double pivot_to_join() const {
    return pivot_of(left_, square_, m_, rounding_of(plan_));
  }

  // Row k joins, or leaves, if the query is `active`. `pivot`: the part of its square that the
  // support does not explain, or the entry in its place. tableau_[lane] is never read: left_ has
  // it.
  __device__ __forceinline__ void exchange(int k, double pivot, bool joins, bool active) {
    const double sign = joins ? 1 : -1, reciprocal = active ? 1 / pivot : 0.0;
    const bool here = active && me_.lane == k;
    __syncwarp();
    if (here) {
#pragma unroll
      for (int j = 0; j < kRows; ++j) row_[j] = tableau_[j];
      row_[k] = pivot - sign;  // so that the loop below leaves sign * share there
      if (joins) raised_ = pivot - left_;
    }
    __syncwarp();
    const double mine = row_[me_.lane];
    const double share = here ? 1 - sign * reciprocal : mine * reciprocal;
#pragma unroll
    for (int j = 0; j < kRows; ++j) tableau_[j] -= share * row_[j];
    left_ = here ? (joins ? 0.0 : -raised_) - reciprocal : left_ - share * mine;
    const double target = of_lane(target_, k);
    target_ -= share * target;
    sum_ += reciprocal * target * target;
    if (here) in_support_ = joins;
    m_ += active ? int(sign) : 0;
  }

  // The row of the largest target joins where no other is to join or to leave.
  __device__ __forceinline__ void turn() {
    const unsigned planned = joining_ | leaving_;  // one of them is 0
    const bool searches = runs_ && !planned, joins = !leaving_;
    int k = planned ? __ffs(int(planned)) - 1 : 0;
    if (__any_sync(kFullWarp, searches)) {
      const int top = large_lane(is_row_ && !in_support_, target_);
      const bool is_last = m_ >= plan_.slots || top == kNoIndex || iterations_ >= p_.max_iter;
      const bool ends = is_optimal(top, searches && !is_last) || is_last;
      if (searches) k = top, runs_ = !ends;
    }
    const double pivot = of_lane(joins ? pivot_to_join() : left_, k);
    // Without a pivot the row depends on others, or is the query, and 0.
    if (joins) entering_ = k, runs_ = runs_ && pivot > 0, iterations_ += searches && runs_;
    exchange(k, pivot, joins, runs_);
    has_left_ = has_left_ || leaving_;
    joining_ &= joining_ - 1, leaving_ &= leaving_ - 1;
    const bool is_done = !(joining_ | leaving_);
    // What enters may leave again, which is no progress.
    if (runs_ && is_done && !in_support_) weight_ = 0;
    if (!(lanes(in_support_) >> entering_ % kRows & 1)) runs_ = runs_ && !is_done;
    correct(runs_ && is_done);
  }

  // Weights that sum to 1 on the simplex.
  __device__ __forceinline__ double scaled(double weight) const {
    return kSimplex ? weight / sum(weight) : weight;
  }

  // What a row's target is above 0 is the gap, but for the scale of the weights.
  __device__ __forceinline__ bool is_optimal(int top, bool asked) const {
    const double target = of_lane(target_, top), unit = kSimplex ? sum_ * scale_ : scale_;
    const bool is_within = p_.gap_tol > 0 && target <= p_.gap_tol * unit;
    const bool is_small = target <= 128 * rounding_of(plan_) * size_ * unit;
    if (!__any_sync(kFullWarp, asked && is_small)) return is_within;  // what follows takes longer
    const double gap = target / unit;
    const double wb = kSimplex ? sum(scaled(weight_) * b_) : 0.0;
    // <w, c> = <q, q - X^T w> - t (1 - sum) / sum, for the sum of weights that are not scaled
    const double mean = kSimplex ? qq_ - wb - 1 / unit + shift_ : 0.0;
    const double u = of_lane(b_, top) - mean - gap;
    const bool is_optimal = plan_.wide_products ? is_optimal_at<double>(gap, mean, u, wb)
                                                : is_optimal_at<float>(gap, mean, u, wb);
    return is_within || (is_small && is_optimal);
  }

  template <typename P>
  static __device__ __forceinline__ bool is_optimal_at(double gap, double mean, double u,
                                                       double wb) {
    return hullft::is_optimal<kConstraint, P>(P(gap), {P(mean + gap), P(u), P(0)},
                                              {P(wb), P(wb - mean)});
  }

  // The weights become the targets, or as near to them as none falls below 0: rows of weight 0 are
  // to leave.
  __device__ __forceinline__ void correct(bool active) {
    double a = in_support_ ? target_ : 0.0;
    const bool falls = active && in_support_ && !(a > 0);
    const bool is_cut = lanes(falls);
    if (active && !is_cut) weight_ = a;
    if (!__any_sync(kFullWarp, falls)) return;
    const double from = scaled(weight_);
    a = scaled(a);
    const bool known = !lanes(!finite(a));
    const Best<double> nearest = best(falls, -share_until_zero(from, a));
    const double cut = me_.lane == nearest.index ? 0.0 : from - nearest.value * (a - from);
    const unsigned leaving = lanes(in_support_ && !(cut > 0));
    if (!is_cut) return;
    fails_ = fails_ || !known, runs_ = known;
    weight_ = cut, leaving_ = leaving;
  }

  // ||q - X^T w||^2 for a support, as bits.
  __device__ __forceinline__ double distance(unsigned support) {
    constexpr int kAtOnce = 8;  // columns of a lane
    share(weight_);
    double squared = 0;
    with_rows<S>(p_.pool, query_, p_.pool.width, [&](const auto& rows) {
      const auto* q = query_at(rows, p_.query, query_);
      for (int64_t first = me_.lane; first < rows.d; first += kAtOnce * kRows) {
        S left[kAtOnce];
        int64_t at[kAtOnce];
#pragma unroll
        for (int e = 0; e < kAtOnce; ++e) {
          at[e] = first + e * kRows < rows.d ? first + e * kRows : first;
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
    return sum(squared);
  }

  // The weights to their scale, if they are new, and c = b - G w from the Gram matrix, whatever
  // rounding has made of the tableau.
  __device__ __forceinline__ void correlate(bool is_new) {
    const double on_simplex = scaled(weight_);
    if (is_new) weight_ = on_simplex;
    share(weight_);
    c_ = b_;
    for (unsigned more = lanes(weight_ > 0); more; more &= more - 1) {
      const int k = __ffs(int(more)) - 1;
      if (is_row_) c_ -= row_[k] * gram_[k * p_.pool.width + me_.lane];
    }
  }

  // A row that leaves takes digits with it, as many as it had in common with the others. Returns
  // whether the weights, or a row that ought to join, lack them: a new tableau has them.
  __device__ __forceinline__ bool is_inexact() const {
    constexpr double kExact = 1e-9;
    if (!__any_sync(kFullWarp, has_left_)) return false;
    const double c = kSimplex ? c_ - sum(weight_ * c_) : c_, total = sum(weight_);
    const double inverse = scale_ * largest(in_support_ ? -left_ : 0.0);
    const bool is_off = in_support_ ? fabs(c) * inverse > kExact * total
                                    : is_row_ && c > 16 * rounding_of(plan_) * size_;
    return lanes(is_off) && has_left_;
  }

  __device__ __forceinline__ void write(const FwOutputs& out, bool exists) {
    const unsigned support = lanes(S(weight_) > S(0)), unknown = lanes(!finite(weight_));
    const int m = __popc(support);
    const double wc = sum(weight_ * c_), wb = sum(weight_ * b_);
    const double violation = !kSimplex && weight_ > 0 ? fabs(c_) : c_;
    const double top = largest(is_row_ ? violation : -INFINITY);
    const double gap = n_ > 0 ? top - (kSimplex ? wc : 0.0) : 0.0;
    // ||q - X^T w||^2 = <q, q> - <w, b> - <w, c>, unless that is rounding. float32 rounds more.
    const bool is_long = plan_.shares.count > 0, is_exact = sizeof(S) == 4 && plan_.wide_products;
    double squared = qq_ - wb - wc;
    const bool stands = is_exact || (is_long && squared >= kExactShare * size_);
    if (is_exact && !(squared > 128 * epsilon<double>() * qq_)) squared = 0;
    if (!is_exact && !is_long) squared = distance(support);
    if (!exists) return;
    if (fails_ || unknown) return write_failure<S>(query_, p_.n_select, out, me_);
    const int64_t width = p_.pool.width;
    if (me_.lane < width) static_cast<S*>(out.weights)[query_ * width + me_.lane] = S(weight_);
    if (me_.lane == 0) write_scalars<S>(query_, m, S(sqrt(squared)), S(gap), iterations_, out);
    if (!is_long) return;
    if (me_.lane == 0) long_.squares[query_] = stands ? 0 : -1;
    if (!(S(weight_) > S(0))) return;
    const int at = __popc(support & ((1u << me_.lane) - 1));
    long_.weights[query_ * plan_.slots + at] = S(weight_);
    long_.atoms[query_ * plan_.slots + at] = me_.lane;
  }

  const FwProblem& p_;
  const SolverPlan& plan_;
  const int64_t query_;
  const double *const products_, *const gram_;
  const LongRows<S> long_;
  double* const row_;
  BlockThread me_;
  int first_lane_;
  double tableau_[kRows];
  // The lane's row: its product with the query, its diagonal elements, its target or weight.
  double b_ = 0, square_ = 0, left_ = 0, raised_ = 0, target_ = 0, weight_ = 0, c_ = 0;
  bool is_row_ = false, in_support_ = false;
  int n_ = 0;
  double qq_ = 0, shift_ = 0, scale_ = 1, size_ = 0;
  double sum_ = 0;  // of weights times what they had as targets
  int m_ = 0, iterations_ = 0, entering_ = 0;
  unsigned joining_ = 0, leaving_ = 0;  // rows, as bits
  bool fails_ = false, runs_ = false, has_left_ = false;
};

template <typename S, int kConstraint, int kRows>
__global__ void __launch_bounds__(kThreads, kRows <= 16 ? 4 : 2)
    fw_tableau_kernel(FwProblem problem, SolverPlan plan, unsigned char* workspace,
                      FwOutputs outputs) {
  __shared__ double rows[kThreads / kRows][kRows];
  const int of_block = int(threadIdx.x) / kRows;
  const int64_t asked = int64_t(blockIdx.x) * (kThreads / kRows) + of_block;
  const bool exists = asked < problem.batch;
  const int64_t query = exists ? asked : problem.batch - 1;
  const unsigned char* gram = workspace + plan.columns_offset + query * plan.column_stride;
  FwTableau<Constraint(kConstraint), S, kRows> solver(
      problem, plan, query, reinterpret_cast<const double*>(workspace) + query * problem.pool.width,
      reinterpret_cast<const double*>(gram), long_rows_of<S>(plan, workspace), rows[of_block]);
  solver.solve(outputs, exists);
}

template <typename S, int kRows>
auto kernel_of(Constraint constraint) {
  return constraint == Constraint::kSimplex
             ? fw_tableau_kernel<S, int(Constraint::kSimplex), kRows>
             : fw_tableau_kernel<S, int(Constraint::kNonNegative), kRows>;
}

template <typename S>
auto kernel_of(Constraint constraint, int width) {
  if (width <= 8) return kernel_of<S, 8>(constraint);
  return width <= 16 ? kernel_of<S, 16>(constraint) : kernel_of<S, kTableauRows>(constraint);
}

}  // namespace

cudaError_t launch_tableau(const FwProblem& problem, Constraint constraint, const SolverPlan& plan,
                           void* workspace, const FwOutputs& outputs, cudaStream_t stream) {
  const int width = problem.pool.width;
  const auto kernel = problem.pool.storage == Storage::kFloat64
                          ? kernel_of<double>(constraint, width)
                          : kernel_of<float>(constraint, width);
  const int64_t queries = kThreads / (width <= 8 ? 8 : width <= 16 ? 16 : kTableauRows);
  const int64_t blocks = (problem.batch + queries - 1) / queries;
  HULLFT_LAUNCH(kernel, dim3(unsigned(blocks)), dim3(kThreads), 0, stream, problem, plan,
                static_cast<unsigned char*>(workspace), outputs);
  return cudaGetLastError();
}

}  // namespace hullft
