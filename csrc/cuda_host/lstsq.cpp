// simplex_lstsq, nnls and their adjoint on CUDA. Schemas: csrc/ops.cpp.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>

#include "../cuda/lstsq_adjoint.h"
#include "../host/selection_arguments.h"
#include "corrective.h"

namespace hullft {
namespace {

void refuse_gram(const char* op, bool is_gram, const Tensor& gram) {
  if (is_gram)
    value_error(op, "gram= runs on the CPU for now, gram is on ", device_name(gram.device()));
}

template <Constraint kConstraint>
LstsqTensors::Tuple solve(const Tensor& pool, const Tensor& query, double gap_tol,
                          const std::optional<int64_t>& max_iter,
                          const std::optional<Tensor>& pool_sizes, bool is_gram) {
  constexpr const char* op = kConstraint == Constraint::kSimplex ? "simplex_lstsq" : "nnls";
  const SelectionArguments arguments = check_lstsq(op, pool, query, pool_sizes, is_gram);
  refuse_gram(op, is_gram, pool);
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
  solve_corrective(op, pool, problem, kConstraint, outputs_of(tensors), context);
  return tensors.tuple();
}

Tensor lstsq_adjoint(const Tensor& pool, const Tensor& weights, const Tensor& gradient,
                     bool is_gram, bool on_simplex) {
  const SelectionArguments arguments = check_adjoint(pool, weights, gradient, is_gram);
  const char* op = arguments.op;
  refuse_gram(op, is_gram, pool);
  check_launch(arguments);
  const int64_t batch = arguments.batch, width = arguments.width;
  const CudaContext context(op, pool);
  const SelectionInputs inputs(arguments);
  const Tensor dense_weights = torch::stable::contiguous(weights),
               dense_gradient = torch::stable::contiguous(gradient);
  const Tensor adjoint =
      empty_beside(pool, std::array<int64_t, 2>{batch, width}, ScalarType::Double);
  const AdjointProblem problem{inputs.pool(),
                               dense_weights.const_data_ptr(),
                               dense_gradient.const_data_ptr<double>(),
                               adjoint.mutable_data_ptr<double>(),
                               batch,
                               on_simplex};
  const AdjointPlan plan = plan_adjoint(problem, context.limits());
  const Tensor workspace = context.workspace(pool, plan.workspace_bytes);
  check_cuda(op, launch_adjoint(problem, plan, workspace.mutable_data_ptr(), context.stream()));
  return adjoint;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hullft_ops, CUDA, m) {
  m.impl("simplex_lstsq", TORCH_BOX(&solve<Constraint::kSimplex>));
  m.impl("nnls", TORCH_BOX(&solve<Constraint::kNonNegative>));
  m.impl("lstsq_adjoint", TORCH_BOX(&lstsq_adjoint));
}

}  // namespace hullft
