// simplex_lstsq and nnls on the CPU. Schemas: csrc/ops.cpp.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include "../../host/lstsq_options.h"
#include "../../host/selection_tensors.h"
#include "../memory.h"
#include "../select_batch.h"
#include "../thread_solver.h"
#include "lstsq_solver.h"
#include "pivoted_pool.h"

namespace hullft {
namespace {

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

// What a call of either operator takes, checked.
struct LstsqCall {
  LstsqCall(const char* op, const Tensor& pool, const Tensor& query, double gap_tolerance,
            const std::optional<int64_t>& max_iter, const std::optional<Tensor>& pool_sizes,
            bool are_products)
      : arguments(check_lstsq(op, pool, query, pool_sizes, are_products)),
        sizes(arguments),
        options{check_max_iter(arguments, max_iter), 0, gap_tolerance, arguments.width + 1},
        is_gram(are_products),
        may_pivot(!are_products && !max_iter) {
    check_fits(
        op,
        8.0 * double(arguments.width) * double(arguments.batch) + solver_bytes(arguments, sizes),
        arguments.batch, " queries of ", arguments.width, " rows");
  }

  // Multiply-adds of the batch.
  double work() const {
    constexpr double kCycles = 16;  // of a query, about
    return double(arguments.batch) * kStepsWork + kCycles * double(arguments.dim) * sizes.total();
  }

  SelectionArguments arguments;
  Sizes sizes;
  CorrectiveOptions options;
  bool is_gram, may_pivot;
};

template <typename Solver, typename T>
void solve_each(const LstsqCall& call, const UnitPool<T>* units, const LstsqOutput& output) {
  const LstsqOptions<T> options{call.options, units};
  select_batch<T>(call.arguments, call.sizes, call.work(), output,
                  [&] { return ThreadSolver<Solver, LstsqOptions<T>>(options); });
}

// Many queries of one small pool. What pivoting does not solve to rounding, the rows do.
template <typename T, Constraint kConstraint>
void pivot(const LstsqCall& call, const PivotedPool<T, kConstraint>& pool,
           const LstsqOutput& output) {
  const SelectionArguments& arguments = call.arguments;
  const Pool<T> rows_of(arguments);
  const Tensor query = dense_query(arguments);
  const T* queries = data<T>(query);
  const int64_t stride = query.stride(0), lanes = pivoting_kernel().lanes;
  const LstsqOptions<T> options{call.options, nullptr};
  using RowSolver = ThreadSolver<LstsqSolver<T, kConstraint>, LstsqOptions<T>>;
  struct Workspace {
    PivotedQueries<T, kConstraint> pivoted;
    RowSolver solver;
    std::vector<const T*> rows;
    ReadAhead<T> ahead;
    SelectionAnswer answer;
  };
  FirstFailure failure;
  const auto solve = [&](Workspace& w, int64_t group) {
    const int64_t first = group * lanes, last = std::min(first + lanes, arguments.batch);
    w.pivoted.solve(queries + first * stride, stride, last - first);
    for (int64_t b = first; b < last; ++b) {
      bool is_solved = w.pivoted.answer(b - first, w.answer);
      if (!is_solved) {
        rows_of.rows(b, arguments.width, w.rows);
        w.ahead.begin(arguments.dim);
        is_solved =
            w.solver.solve(QueryPool<T>{w.rows.data(), arguments.width, queries + b * stride,
                                        arguments.dim, false, &w.ahead},
                           w.answer);
      }
      if (!is_solved || !output.write(b, w.answer)) failure.note(b);
    }
    return true;
  };
  FirstFailure of_groups;
  for_each_query((arguments.batch + lanes - 1) / lanes, call.work(), of_groups,
                 [&] {
                   return Workspace{
                       PivotedQueries<T, kConstraint>(pool), RowSolver(options), {}, {}, {}};
                 },
                 solve);
  if (!failure.any()) return;
  const int64_t b = failure.query();
  non_finite_error(arguments, rows_of, arguments.width, queries + b * stride, b);
}

template <Constraint kConstraint>
LstsqTensors::Tuple lstsq(const LstsqCall& call) {
  const SelectionArguments& arguments = call.arguments;
  const LstsqOutput output(arguments, call.is_gram);
  dispatch_floating(arguments.pool.scalar_type(), [&](auto t) {
    using T = decltype(t);
    if (call.is_gram) return solve_each<GramSolver<T, kConstraint>, T>(call, nullptr, output);
    if (call.may_pivot && PivotedPool<T, kConstraint>::takes(arguments)) {
      const PivotedPool<T, kConstraint> pool(arguments);
      if (pool.is_well_conditioned()) return pivot<T, kConstraint>(call, pool, output);
    }
    const SharedUnitPool<T> units(arguments);
    solve_each<LstsqSolver<T, kConstraint>, T>(call, units.get(), output);
  });
  return output.tensors();
}

LstsqTensors::Tuple simplex_lstsq(const Tensor& pool, const Tensor& query, double gap_tol,
                                  const std::optional<int64_t>& max_iter,
                                  const std::optional<Tensor>& pool_sizes, bool is_gram) {
  return lstsq<Constraint::kSimplex>(
      {"simplex_lstsq", pool, query, gap_tol, max_iter, pool_sizes, is_gram});
}

LstsqTensors::Tuple nnls(const Tensor& pool, const Tensor& query, double gap_tol,
                         const std::optional<int64_t>& max_iter,
                         const std::optional<Tensor>& pool_sizes, bool is_gram) {
  return lstsq<Constraint::kNonNegative>(
      {"nnls", pool, query, gap_tol, max_iter, pool_sizes, is_gram});
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hullft_ops, CPU, m) {
  m.impl("simplex_lstsq", TORCH_BOX(&simplex_lstsq));
  m.impl("nnls", TORCH_BOX(&nnls));
}

}  // namespace hullft
