// sift_select on the CPU: the schedule of core/sift.h, float64 state. Schema: csrc/ops.cpp.
#include "../core/sift.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "../core/frank_wolfe.h"
#include "gram_columns.h"
#include "memory.h"
#include "residual.h"
#include "select_batch.h"
#include "simd/sift_kernels.h"

namespace hullft {
namespace {

struct SiftOptions {
  int64_t n_select, n_targets;
  double noise;
};

struct SiftAnswer : SelectionAnswer {
  std::vector<int64_t> picks;     // in their order
  std::vector<double> variances;  // at the targets, after each pick
};

class SiftOutput {
 public:
  using Answer = SiftAnswer;

  SiftOutput(const Tensor& pool, int64_t batch, int64_t n_select)
      : n_select_(n_select),
        selection_(pool, batch, n_select),
        out_(pool, batch, n_select),
        picks_(out_.picks.mutable_data_ptr<int64_t>()),
        variance_(out_.variance) {}

  // False when a value is too large for the outputs' dtype. Threads write disjoint queries.
  bool write(int64_t b, const SiftAnswer& answer) const {
    bool fits = selection_.write(b, answer);
    for (int64_t i = 0; i < n_select_; ++i) {
      picks_[b * n_select_ + i] = answer.picks[size_t(i)];
      fits = variance_.set(b * n_select_ + i, answer.variances[size_t(i)]) && fits;
    }
    return fits;
  }

  // Result for an empty pool: the targets' variance stays.
  bool write_nothing(int64_t b, double residual, double squares) const {
    SiftAnswer nothing;
    nothing.residual = residual;
    nothing.picks.assign(size_t(n_select_), -1);
    nothing.variances.assign(size_t(n_select_), squares);
    return write(b, nothing);
  }

  PickTensors::Tuple tensors() const { return out_.after(selection_.tensors()); }

 private:
  int64_t n_select_;
  SelectionOutput selection_;
  PickTensors out_;
  int64_t* picks_;
  RealOutput variance_;
};

template <typename T>
class SiftSolver {
 public:
  explicit SiftSolver(const SiftOptions& options) : options_(options) {}

  // The query has n_targets * d values. False when an input or a product is not finite.
  bool solve(const QueryPool<T>& in, SiftAnswer& answer) {
    n_rows_ = in.n_rows, n_ = padded(in.n_rows);
    gram_.begin(in.rows, in.n_rows, in.d, options_.n_select, in.share_rows);
    if (!start(in)) return false;
    answer.picks.clear(), answer.variances.clear();
    ArgMax best = sift_pick_kernel()(posterior_, nullptr);
    // NaN never wins a maximum, and the padding, whose value is 0, then would.
    while (std::isfinite(best.value) && best.index < n_rows_) {
      variance_left_ = std::max(variance_left_ - best.value, 0.0);
      answer.picks.push_back(best.index);
      answer.variances.push_back(variance_left_);
      ++picked_[size_t(best.index)];
      if (int64_t(answer.picks.size()) == options_.n_select) return summarise(in, answer);
      best = condition(best.index);
    }
    return false;
  }

 private:
  bool start(const QueryPool<T>& in) {
    posterior_ = {n_, options_.n_targets, covariance_.reserve(options_.n_targets * n_),
                  variance_.reserve(n_), options_.noise};
    columns_.reserve((options_.n_select - 1) * n_);
    rates_.clear();
    picked_.assign(size_t(n_rows_), 0);
    for (int64_t t = 0; t < options_.n_targets; ++t)
      gram_.multiply(in.query + t * in.d, posterior_.covariance + t * n_);
    dot_kernels<T>().squared_norms(in.rows, n_rows_, in.d, posterior_.variance);
    std::fill(posterior_.variance + n_rows_, posterior_.variance + n_, 0.0);
    measure_targets(in.query, in.d);
    return all_finite();
  }

  // A row that is not finite makes its norm so: no pass of its own.
  bool all_finite() const {
    double poison = variance_left_ * 0;
    for (int64_t k = 0; k < n_rows_; ++k)
      poison += b_.get()[k] * 0 + (posterior_.variance[k] + options_.noise) * 0;
    return poison == 0;
  }

  // The variance at the targets; their mean, its square and its products with the rows.
  void measure_targets(const T* query, int64_t d) {
    const double share = 1.0 / double(options_.n_targets);
    double* mean = mean_target_.reserve(d);
    variance_left_ = qq_ = 0;
    for (int64_t i = 0; i < d; ++i) {
      mean[i] = 0;
      for (int64_t t = 0; t < options_.n_targets; ++t) {
        const double x = widen(query[t * d + i]);
        mean[i] += x * share;
        variance_left_ += x * x;
      }
      qq_ += mean[i] * mean[i];
    }
    double* b = b_.reserve(n_);
    std::fill(b, b + n_rows_, 0.0);
    std::fill(b + n_rows_, b + n_, -std::numeric_limits<double>::infinity());
    for (int64_t t = 0; t < options_.n_targets; ++t)
      for (int64_t k = 0; k < n_rows_; ++k) b[k] += posterior_.covariance[t * n_ + k] * share;
  }

  bool is_picked(int64_t atom) const { return picked_[size_t(atom)] > 0; }

  // In a pass over the rows with the column that is likely to be next.
  const double* next_gram_column(int64_t atom) {
    return gram_.get(
        atom, [this](int64_t a) { return is_picked(a); }, [this] { return likely_next(); });
  }

  const double* gram_column(int64_t atom) {
    return gram_.get(atom, [this](int64_t a) { return is_picked(a); });
  }

  // Of the candidates without a column, the one that would lower the variance at the targets most;
  // -1 if every candidate has a column.
  int64_t likely_next() const {
    double highest = -1;
    int64_t likely = -1;
    for (int64_t k = 0; k < n_rows_; ++k) {
      if (gram_.has(k)) continue;
      const double rate = precision(posterior_.variance[k], options_.noise);
      double reduction = 0;
      for (int64_t t = 0; t < options_.n_targets; ++t)
        reduction += variance_reduction(posterior_.covariance[t * n_ + k], rate);
      if (reduction > highest) highest = reduction, likely = k;
    }
    return likely;
  }

  ArgMax condition(int64_t s) {
    const int64_t n_earlier = int64_t(rates_.size());
    const double rate = precision(posterior_.variance[s], options_.noise);
    shares_.resize(size_t(n_earlier));
    for (int64_t j = 0; j < n_earlier; ++j)
      shares_[size_t(j)] = columns_.get()[j * n_ + s] * rates_[size_t(j)];
    target_shares_.resize(size_t(options_.n_targets));
    for (int64_t t = 0; t < options_.n_targets; ++t)
      target_shares_[size_t(t)] = posterior_.covariance[t * n_ + s] * rate;
    rates_.push_back(rate);
    const SiftPick pick{next_gram_column(s),
                        columns_.get(),
                        shares_.data(),
                        n_earlier,
                        columns_.get() + n_earlier * n_,
                        rate,
                        target_shares_.data()};
    return sift_pick_kernel()(posterior_, &pick);
  }

  // The picks as a selection of equal weight each.
  bool summarise(const QueryPool<T>& in, SiftAnswer& answer) {
    answer.indices.clear(), answer.counts.clear(), answer.weights.clear();
    for (int64_t k = 0; k < n_rows_; ++k)
      if (picked_[size_t(k)] > 0) answer.indices.push_back(k);
    std::stable_sort(answer.indices.begin(), answer.indices.end(), [this](int64_t i, int64_t j) {
      return picked_[size_t(i)] > picked_[size_t(j)];
    });
    double* u = u_.reserve(n_);
    std::fill(u, u + n_, 0.0);
    ArgMax top{0, 0};
    for (const int64_t k : answer.indices) {
      answer.counts.push_back(picked_[size_t(k)]);
      answer.weights.push_back(double(picked_[size_t(k)]) / double(options_.n_select));
      top = step_kernels().step_argmax(b_.get(), u, n_, 1, answer.weights.back(), gram_column(k));
    }
    Iterate<double> mix{0, 0};
    double largest_square = qq_;
    for (size_t i = 0; i < answer.indices.size(); ++i) {
      const int64_t k = answer.indices[i];
      mix.wb += answer.weights[i] * b_.get()[k];
      mix.wu += answer.weights[i] * u[k];
      largest_square = std::max(largest_square, gram_column(k)[k]);
    }
    answer.support_size = int64_t(answer.indices.size());
    answer.num_iter = options_.n_select;
    const double squared = squared_residual(mix, qq_);
    answer.residual =
        squared < kCancelled * largest_square ? residual_of_rows(in, answer) : std::sqrt(squared);
    answer.gap = top.value - mean_correlation(mix);
    return std::isfinite(answer.gap);
  }

  // Uses up the mean of the targets.
  double residual_of_rows(const QueryPool<T>& in, const SiftAnswer& answer) {
    return residual_norm(mean_target_.get(), in.d, answer.weights,
                         [&](size_t i) { return in.rows[answer.indices[i]]; });
  }

  SiftOptions options_;
  GramColumns<T> gram_;
  AlignedDoubles b_, u_, covariance_, variance_, mean_target_;
  AlignedDoubles columns_;  // [n_select - 1, n]: the conditional columns of the picks so far
  SiftPosterior posterior_{};
  int64_t n_rows_ = 0, n_ = 0;
  double qq_ = 0, variance_left_ = 0;
  std::vector<double> rates_;    // the precision of each pick, when it was picked
  std::vector<int64_t> picked_;  // how often, of each candidate
  std::vector<double> shares_, target_shares_;
};

PickTensors::Tuple sift_select(const Tensor& pool, const Tensor& query, int64_t n_select,
                               double noise, const std::optional<Tensor>& pool_sizes,
                               const std::optional<Tensor>& candidates) {
  const SelectionArguments arguments =
      check_selection("sift_select", pool, query, pool_sizes, candidates, true);
  check_range(arguments.op, "n_select", n_select, 1);
  const SiftOptions options{n_select, arguments.n_targets(), noise};
  const int64_t batch = arguments.batch;
  const Sizes sizes(arguments);
  const double n = double(n_select), rows = double(padded(sizes.largest()));
  // The columns of the picks, their Gram columns, and the columns of the targets.
  const double columns = n + std::min(n, rows) + double(options.n_targets);
  check_memory(arguments, n_select,
               selection_bytes(arguments, n_select) + 8.0 * at_once(batch) * columns * rows);
  const SiftOutput output(pool, batch, n_select);
  // For each pick a column of the Gram matrix, unless it is there, and the earlier picks' columns.
  const double work_a_row = double(arguments.dim) * (columns - n) + n * n / 2;
  const double work = double(batch) * kStepsWork + work_a_row * sizes.total();
  dispatch_floating(pool.scalar_type(), [&](auto t) {
    using T = decltype(t);
    select_batch<T>(arguments, sizes, work, output, [&] { return SiftSolver<T>(options); });
  });
  return output.tensors();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hullft_ops, CPU, m) { m.impl("sift_select", TORCH_BOX(&sift_select)); }

}  // namespace hullft
