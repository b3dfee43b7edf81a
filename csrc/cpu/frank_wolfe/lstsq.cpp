// simplex_lstsq and nnls on the CPU. Schemas: csrc/ops.cpp.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <optional>

#include "../../host/lstsq_options.h"
#include "../../host/selection_tensors.h"
#include "../memory.h"
#include "../select_batch.h"
#include "../thread_solver.h"
#include "corrective_solver.h"

namespace hullft {
namespace {

class LstsqOutput {
 public:
  using Answer = SelectionAnswer;

  LstsqOutput(const Tensor& pool, int64_t batch, int64_t width)
      : width_(width),
        out_(pool, batch, width),
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

  // Of a query without candidates.
  bool write_nothing(int64_t b, double residual, double /*squares*/) const {
    SelectionAnswer nothing;
    nothing.residual = residual;
    return write(b, nothing);
  }

  LstsqTensors::Tuple tensors() const { return out_.tuple(); }

 private:
  int64_t width_;
  LstsqTensors out_;
  int64_t *support_size_, *num_iter_;
  RealOutput weights_, residual_, gap_;
};

template <typename T>
struct LstsqOptions {
  CorrectiveOptions options;
  const UnitPool<T>* units;  // of a pool that all queries share
};

template <typename T, Constraint kConstraint>
class LstsqSolver {
 public:
  bool solve(const LstsqOptions<T>& batch, const QueryPool<T>& in, SelectionAnswer& answer) {
    return solver_.solve(batch.options, in, batch.units, answer);
  }

 private:
  CorrectiveSolver<T, kConstraint> solver_;
};

// Of the queries that are solved at once: their rows as integers, and the support's in float64 with
// its factor.
double solver_bytes(const SelectionArguments& arguments, const Sizes& sizes) {
  const double rows = double(sizes.largest()), dim = double(arguments.dim);
  const double support = std::min(rows, dim + 1);
  return at_once(arguments.batch) * (2 * rows * dim + 8 * support * (dim + support));
}

template <Constraint kConstraint>
LstsqTensors::Tuple lstsq(const char* op, const Tensor& pool, const Tensor& query, double gap_tol,
                          const std::optional<int64_t>& max_iter,
                          const std::optional<Tensor>& pool_sizes) {
  const SelectionArguments arguments =
      check_arguments(op, "pool", pool, query, "pool_sizes", pool_sizes);
  const int64_t cycles = check_max_iter(arguments, max_iter);
  const Sizes sizes(arguments);
  const int64_t batch = arguments.batch, width = arguments.width;
  check_fits(op, 8.0 * double(width) * double(batch) + solver_bytes(arguments, sizes), batch,
             " queries of ", width, " rows");
  const LstsqOutput output(pool, batch, width);
  constexpr double kCycles = 16;  // of a query, about
  const double work = double(batch) * kStepsWork + kCycles * double(arguments.dim) * sizes.total();
  dispatch_floating(pool.scalar_type(), [&](auto t) {
    using T = decltype(t);
    const SharedUnitPool<T> units(arguments);
    const LstsqOptions<T> options{{cycles, 0, gap_tol, width + 1}, units.get()};
    select_batch<T>(arguments, sizes, work, output, [&] {
      return ThreadSolver<LstsqSolver<T, kConstraint>, LstsqOptions<T>>(options);
    });
  });
  return output.tensors();
}

LstsqTensors::Tuple simplex_lstsq(const Tensor& pool, const Tensor& query, double gap_tol,
                                  const std::optional<int64_t>& max_iter,
                                  const std::optional<Tensor>& pool_sizes) {
  return lstsq<Constraint::kSimplex>("simplex_lstsq", pool, query, gap_tol, max_iter, pool_sizes);
}

LstsqTensors::Tuple nnls(const Tensor& pool, const Tensor& query, double gap_tol,
                         const std::optional<int64_t>& max_iter,
                         const std::optional<Tensor>& pool_sizes) {
  return lstsq<Constraint::kNonNegative>("nnls", pool, query, gap_tol, max_iter, pool_sizes);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hullft_ops, CPU, m) {
  m.impl("simplex_lstsq", TORCH_BOX(&simplex_lstsq));
  m.impl("nnls", TORCH_BOX(&nnls));
}

}  // namespace hullft
