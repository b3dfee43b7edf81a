// sift_select on CUDA. Schema: csrc/ops.cpp.
#include "../cuda/sift.h"

#include <torch/csrc/stable/library.h>

#include "context.h"
#include "views.h"

namespace hullft {
namespace {

PickTensors::Tuple sift_select(const Tensor& pool, const Tensor& query, int64_t n_select,
                               double noise, const std::optional<Tensor>& pool_sizes,
                               const std::optional<Tensor>& candidates) {
  const SelectionArguments arguments =
      check_selection("sift_select", pool, query, pool_sizes, candidates, true);
  const char* op = arguments.op;
  check_range(op, "n_select", n_select, 1);
  check_launch(arguments);
  check_range(op, "the number of targets", arguments.n_targets(), 1);
  // For one query, as a batch is solved in parts.
  const double n = double(n_select), n_targets = double(arguments.n_targets());
  check_workspace(op, 8 * (double(arguments.width) * (n + n_targets + 3) + 4 * n + n_targets));
  const SelectionInputs inputs(arguments);
  const CudaContext context(op, pool);
  const SiftProblem problem{
      inputs.pool(), inputs.query(), arguments.batch, int(n_select), int(arguments.n_targets()),
      noise};
  const SolverPlan plan = plan_sift(problem, context.limits());
  const Tensor workspace = context.workspace(pool, plan.workspace_bytes);
  const SelectionTensors selection(pool, arguments.batch, n_select);
  const PickTensors picks(pool, arguments.batch, n_select);
  const SiftOutputs outputs{outputs_of(selection), picks.picks.mutable_data_ptr<int64_t>(),
                            picks.variance.mutable_data_ptr()};
  check_cuda(op,
             launch_sift(problem, plan, workspace.mutable_data_ptr(), outputs, context.stream()));
  return picks.after(selection.tuple());
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hullft_ops, CUDA, m) { m.impl("sift_select", TORCH_BOX(&sift_select)); }

}  // namespace hullft
