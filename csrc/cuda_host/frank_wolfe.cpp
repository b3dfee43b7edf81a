// fw_select on CUDA. Schema: csrc/ops.cpp.
#include "../cuda/frank_wolfe.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "../host/fw_options.h"
#include "context.h"
#include "views.h"

namespace hullft {
namespace {

SelectionTensors::Tuple fw_select(const Tensor& pool, const Tensor& query, int64_t n_select,
                                  int64_t max_iter, double tol, double gap_tol,
                                  const std::string& variant, int64_t swap_passes,
                                  const std::optional<Tensor>& pool_sizes,
                                  const std::optional<Tensor>& candidates) {
  const SelectionArguments arguments =
      check_selection("fw_select", "fw_select_indexed", pool, query, pool_sizes, candidates);
  const char* op = arguments.op;
  const FwOptions options =
      check_fw_options(op, n_select, max_iter, tol, gap_tol, variant, swap_passes);
  check_launch(arguments);
  // Of one query, as a batch is solved in parts: its state, and the column of every atom.
  constexpr double kStateBytes = 128, kMoreAtoms = 64;
  const double width = double(arguments.width);
  const double atoms = std::min(width, double(n_select) + kMoreAtoms);
  check_workspace(op, kStateBytes * (width + atoms) + 8 * width * atoms);
  const SelectionInputs inputs(arguments);
  const CudaContext context(op, pool);
  const FwProblem problem{inputs.pool(), inputs.query(),  arguments.batch,
                          int(n_select), int(max_iter),   int(swap_passes),
                          options.tol,   options.gap_tol, options.variant};
  const FwPlan plan = plan_frank_wolfe(problem, context.limits());
  const Tensor workspace = context.workspace(pool, plan.workspace_bytes);
  const SelectionTensors tensors(pool, arguments.batch, n_select);
  check_cuda(op, launch_frank_wolfe(problem, plan, workspace.mutable_data_ptr(),
                                    outputs_of(tensors), context.stream()));
  return tensors.tuple();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hullft_ops, CUDA, m) { m.impl("fw_select", TORCH_BOX(&fw_select)); }

}  // namespace hullft
