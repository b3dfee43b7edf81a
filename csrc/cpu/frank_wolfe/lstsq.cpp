// simplex_lstsq and nnls on the CPU. Schemas: csrc/ops.cpp.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <optional>

#include "../memory.h"
#include "../select_batch.h"
#include "../thread_solver.h"
#include "lstsq_solver.h"
#include "pivoted_pool.h"

namespace hullft {
namespace {

// Where the pool is a Gram matrix and the query its products. The residual of the answer is the
// square less the query's.
template <typename T, Constraint kConstraint>
class GramSolver {
 public:
  bool solve(const CorrectiveOptions& options, const QueryPool<T>& in, SelectionAnswer& answer) {
    if (in.pool_id != pool_id_) read_gram(in);
    const int64_t n = in.n_rows;
    double* products = products_.reserve(n);
    for (int64_t i = 0; i < n; ++i) products[i] = widen(in.query[i]) * scale_;
    const double rounding = sizeof(T) == 8 ? epsilon<double>() : double(epsilon<float>());
    const GramProblem problem{gram_.get(), n, padded(n), products, 0, rounding};
    CorrectiveOptions scaled = options;
    scaled.gap_tol *= scale_;
    if (!is_finite_ || !solver_.solve(scaled, problem, answer)) return false;
    answer.residual = solver_.correlations().squared_residual() / scale_;
    answer.gap /= scale_;
    return true;
  }

 private:
  // A matrix of entries below kSmall is scaled by kScale: their reciprocals would overflow.
  static constexpr double kSmall = 0x1p-960, kScale = 0x1p192;

  // Once for the queries in a row that share the matrix.
  void read_gram(const QueryPool<T>& in) {
    const int64_t n = in.n_rows, stride = padded(n);
    double *gram = gram_.reserve(n * stride), poison = 0, largest = 0;
    for (int64_t i = 0; i < n; ++i) largest = std::max(largest, double(widen(in.rows[i][i])));
    scale_ = largest < kSmall ? kScale : 1;
    for (int64_t i = 0; i < n; ++i) {
      std::fill_n(gram + i * stride + n, stride - n, 0.0);
      for (int64_t j = 0; j <= i; ++j) {
        const double product = (widen(in.rows[i][j]) + widen(in.rows[j][i])) / 2 * scale_;
        gram[i * stride + j] = gram[j * stride + i] = product;
        poison += product * 0;
      }
    }
    pool_id_ = in.pool_id, is_finite_ = poison == 0;
  }

  CorrectiveSolver<GramCorrelations<kConstraint>> solver_;
  AlignedDoubles gram_, products_;
  double scale_ = 1;
  int64_t pool_id_ = 0;
  bool is_finite_ = true;
};

// Many queries of one small pool, as many at once as a vector has lanes. What pivoting does not
// solve to rounding, the rows do.
template <typename T, Constraint kConstraint>
class PivotingSolver {
 public:
  PivotingSolver(const PivotedPool<T, kConstraint>& pool, const CorrectiveOptions& options)
      : pivoted_(pool), by_rows_(options) {}

  bool solve(const QueryPool<T>& in, SelectionAnswer& answer) {
    if (in.b >= end_) {
      first_ = in.b, end_ = std::min(in.b + pivoting_kernel().lanes, in.batch);
      pivoted_.solve(in.query, in.query_stride, end_ - first_);
    }
    return pivoted_.answer(in.b - first_, answer) || by_rows_.solve(in, answer);
  }

 private:
  PivotedQueries<T, kConstraint> pivoted_;
  int64_t first_ = 0, end_ = 0;  // of the queries that are solved
  ThreadSolver<LstsqSolver<T, kConstraint>, CorrectiveOptions> by_rows_;
};

class LstsqOutput {
 public:
  using Answer = SelectionAnswer;

  LstsqOutput(const SelectionArguments& arguments, bool is_gram)
      : width_(arguments.width),
        is_gram_(is_gram),
        out_(arguments.pool, arguments.batch, arguments.width),
        support_size_(out_.support_size.mutable_data_ptr<int64_t>()),
        num_iter_(out_.num_iter.mutable_data_ptr<int64_t>()),
        weights_(out_.weights),
        residual_(out_.residual),
        gap_(out_.gap) {}

  // False when a value is too large for the outputs' dtype. Threads write disjoint queries.
  bool write(int64_t b, const SelectionAnswer& answer) const {
    for (int64_t k = 0; k < width_; ++k) weights_.set(b * width_ + k, 0.0);
    bool fits = true;
    for (size_t i = 0; i < answer.indices.size(); ++i)
      fits = weights_.set(b * width_ + answer.indices[i], answer.weights[i]) && fits;
    support_size_[b] = answer.support_size;
    num_iter_[b] = answer.num_iter;
    fits = residual_.set(b, answer.residual) && fits;
    return gap_.set(b, std::max(answer.gap, 0.0)) && fits;  // below 0 only by rounding
  }

  // A query without candidates has no weights.
  bool write_nothing(int64_t b, double residual, double /*squares*/) const {
    SelectionAnswer nothing;
    nothing.residual = is_gram_ ? 0 : residual;
    return write(b, nothing);
  }

  LstsqTensors::Tuple tensors() const { return out_.tuple(); }

 private:
  int64_t width_;
  bool is_gram_;
  LstsqTensors out_;
  int64_t *support_size_, *num_iter_;
  RealOutput weights_, residual_, gap_;
};

// Queries that are solved at once: their rows as integers, and the support's in float64 with its
// factor.
double solver_bytes(const SelectionArguments& arguments, const Sizes& sizes) {
  const double rows = double(sizes.largest()), dim = double(arguments.dim);
  const double support = std::min(rows, dim + 1);
  return at_once(arguments.batch) * (2 * rows * dim + 8 * support * (dim + support));
}

template <Constraint kConstraint>
LstsqTensors::Tuple lstsq(const Tensor& pool, const Tensor& query, double gap_tol,
                          const std::optional<int64_t>& max_iter,
                          const std::optional<Tensor>& pool_sizes, bool is_gram) {
  const char* op = kConstraint == Constraint::kSimplex ? "simplex_lstsq" : "nnls";
  const SelectionArguments arguments = check_lstsq(op, pool, query, pool_sizes, is_gram);
  const Sizes sizes(arguments);
  const CorrectiveOptions options{check_max_iter(arguments, max_iter), 0, gap_tol,
                                  arguments.width + 1};
  const double batch = double(arguments.batch);
  check_fits(op, 8.0 * double(arguments.width) * batch + solver_bytes(arguments, sizes),
             arguments.batch, " queries of ", arguments.width, " rows");
  constexpr double kCycles = 16;  // of a query, about
  const double work = batch * kStepsWork + kCycles * double(arguments.dim) * sizes.total();
  const LstsqOutput output(arguments, is_gram);
  dispatch_floating(pool.scalar_type(), [&](auto t) {
    using T = decltype(t);
    const auto solve_with = [&](const auto& make_solver) {
      select_batch<T>(arguments, sizes, work, output, make_solver);
    };
    if (is_gram)
      return solve_with(
          [&] { return ThreadSolver<GramSolver<T, kConstraint>, CorrectiveOptions>(options); });
    if (!max_iter && PivotedPool<T, kConstraint>::takes(arguments)) {
      const PivotedPool<T, kConstraint> pivoted(arguments);
      if (pivoted.is_well_conditioned())
        return solve_with([&] { return PivotingSolver<T, kConstraint>(pivoted, options); });
    }
    solve_with(
        [&] { return ThreadSolver<LstsqSolver<T, kConstraint>, CorrectiveOptions>(options); });
  });
  return output.tensors();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hullft_ops, CPU, m) {
  m.impl("simplex_lstsq", TORCH_BOX(&lstsq<Constraint::kSimplex>));
  m.impl("nnls", TORCH_BOX(&lstsq<Constraint::kNonNegative>));
}

}  // namespace hullft
