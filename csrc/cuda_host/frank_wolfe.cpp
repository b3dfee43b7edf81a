// fw_select on CUDA. Schema: csrc/ops.cpp.
#include "../cuda/frank_wolfe.h"

#include <torch/csrc/stable/library.h>

#include "../host/fw_options.h"
#include "context.h"
#include "corrective.h"
#include "views.h"

namespace hullft {
namespace {

SelectionTensors::Tuple fw_select(const Tensor& pool, const Tensor& query, int64_t n_select,
                                  int64_t max_iter, double tol, double gap_tol,
                                  const std::string& variant, int64_t swap_passes,
                                  const std::optional<int64_t>& max_support,
                                  const std::optional<Tensor>& pool_sizes,
                                  const std::optional<Tensor>& candidates) {
  const SelectionArguments arguments =
      check_selection("fw_select", pool, query, pool_sizes, candidates);
  const char* op = arguments.op;
  const FwOptions options =
      check_fw_options(op, n_select, max_iter, tol, gap_tol, variant, swap_passes, max_support);
  check_launch(arguments);
  check_workspace(op, workspace_of_query(double(arguments.width), double(options.max_support)));
  const SelectionInputs inputs(arguments);
  const CudaContext context(op, pool);
  const FwProblem problem{
      inputs.pool(), inputs.query(),   arguments.batch, int(n_select),   int(options.max_support),
      int(max_iter), int(swap_passes), options.tol,     options.gap_tol, options.variant};
  const SelectionTensors tensors(pool, arguments.batch, n_select);
  const FwOutputs outputs = outputs_of(tensors);
  if (options.variant == Variant::kCorrective) {
    solve_corrective(op, pool, problem, Constraint::kSimplex, outputs, context);
  } else {
    const SolverPlan plan = plan_frank_wolfe(problem, context.limits());
    const Tensor workspace = context.workspace(pool, plan.workspace_bytes);
    check_cuda(op, launch_frank_wolfe(problem, plan, workspace.mutable_data_ptr(), outputs,
                                      context.stream()));
  }
  return tensors.tuple();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hullft_ops, CUDA, m) { m.impl("fw_select", TORCH_BOX(&fw_select)); }

}  // namespace hullft
