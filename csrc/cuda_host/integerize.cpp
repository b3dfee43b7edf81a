// integerize on CUDA. Schema: csrc/ops.cpp.
#include "../cuda/integerize.h"

#include <torch/csrc/stable/library.h>

#include "context.h"
#include "views.h"

namespace hullft {
namespace {

Tensor integerize(const Tensor& support, const Tensor& query, const Tensor& weights,
                  int64_t n_select, int64_t swap_passes,
                  const std::optional<Tensor>& support_sizes) {
  const SelectionArguments arguments =
      check_arguments("integerize", "support", support, query, "support_sizes", support_sizes);
  const char* op = arguments.op;
  check_range(op, "n_select", n_select, 1);
  check_range(op, "swap_passes", swap_passes, 0);
  check_weights(arguments, weights);
  check_launch(arguments);
  const double m = double(arguments.width);
  check_workspace(op, double(arguments.batch) * (8 * m * m + 64 * m + 32));
  const CudaContext context(op, support);
  const SelectionInputs inputs(arguments);
  const Tensor dense_weights = torch::stable::contiguous(weights);
  const IntegerizeProblem problem{inputs.pool(),
                                  inputs.query(),
                                  dense_weights.const_data_ptr(),
                                  weights.scalar_type() == ScalarType::Double,
                                  arguments.batch,
                                  int(n_select),
                                  int(swap_passes),
                                  context.limits().sms};
  const Tensor workspace = context.workspace(support, integerize_workspace_bytes(problem));
  const std::array<int64_t, 2> out_shape{arguments.batch, arguments.width};
  const Tensor counts = empty_beside(support, out_shape, ScalarType::Long);
  check_cuda(op, launch_integerize(problem, workspace.mutable_data_ptr(),
                                   counts.mutable_data_ptr<int64_t>(), context.stream()));
  return counts;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hullft_ops, CUDA, m) { m.impl("integerize", TORCH_BOX(&integerize)); }

}  // namespace hullft
