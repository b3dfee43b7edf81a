// simplex_lstsq and nnls on CUDA. Schemas: csrc/ops.cpp.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstdint>
#include <limits>

#include "../host/lstsq_options.h"
#include "corrective.h"

namespace hullft {
namespace {

LstsqTensors::Tuple solve(const char* op, Constraint constraint, const Tensor& pool,
                          const Tensor& query, double gap_tol,
                          const std::optional<int64_t>& max_iter,
                          const std::optional<Tensor>& pool_sizes, bool is_gram) {
  const SelectionArguments arguments = check_lstsq(op, pool, query, pool_sizes, is_gram);
  if (is_gram)
    value_error(op, "gram= runs on the CPU for now, gram is on ", device_name(pool.device()));
  const int64_t cycles = check_max_iter(arguments, max_iter);
  check_launch(arguments);
  const double width = double(arguments.width);
  check_workspace(op, workspace_of_query(width, std::min(width, double(arguments.dim))));
  const SelectionInputs inputs(arguments);
  const CudaContext context(op, pool);
  const int rows = int(arguments.width);
  FwProblem problem{};
  problem.pool = inputs.pool(), problem.query = inputs.query(), problem.batch = arguments.batch;
  problem.n_select = problem.max_support = rows;
  problem.max_iter = int(std::min<int64_t>(cycles, std::numeric_limits<int>::max())),
  problem.gap_tol = gap_tol;
  problem.variant = Variant::kCorrective, problem.dense = true;
  const LstsqTensors tensors(pool, arguments.batch, rows);
  const FwOutputs outputs{nullptr,
                          nullptr,
                          tensors.support_size.mutable_data_ptr<int64_t>(),
                          tensors.num_iter.mutable_data_ptr<int64_t>(),
                          tensors.weights.mutable_data_ptr(),
                          tensors.residual.mutable_data_ptr(),
                          tensors.gap.mutable_data_ptr()};
  solve_corrective(op, pool, problem, constraint, outputs, context);
  return tensors.tuple();
}

LstsqTensors::Tuple simplex_lstsq(const Tensor& pool, const Tensor& query, double gap_tol,
                                  const std::optional<int64_t>& max_iter,
                                  const std::optional<Tensor>& pool_sizes, bool is_gram) {
  return solve("simplex_lstsq", Constraint::kSimplex, pool, query, gap_tol, max_iter, pool_sizes,
               is_gram);
}

LstsqTensors::Tuple nnls(const Tensor& pool, const Tensor& query, double gap_tol,
                         const std::optional<int64_t>& max_iter,
                         const std::optional<Tensor>& pool_sizes, bool is_gram) {
  return solve("nnls", Constraint::kNonNegative, pool, query, gap_tol, max_iter, pool_sizes,
               is_gram);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hullft_ops, CUDA, m) {
  m.impl("simplex_lstsq", TORCH_BOX(&simplex_lstsq));
  m.impl("nnls", TORCH_BOX(&nnls));
}

}  // namespace hullft
