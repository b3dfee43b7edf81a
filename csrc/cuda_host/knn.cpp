// knn_select on CUDA. Schema: csrc/ops.cpp.
#include "../cuda/knn.h"

#include <torch/csrc/stable/library.h>

#include "../cuda/correlate.h"
#include "context.h"
#include "views.h"

namespace hullft {
namespace {

SelectionTensors::Tuple knn_select(const Tensor& pool, const Tensor& query, int64_t n_select,
                                   const std::optional<Tensor>& pool_sizes,
                                   const std::optional<Tensor>& candidates) {
  const SelectionArguments arguments =
      check_selection("knn_select", pool, query, pool_sizes, candidates);
  const char* op = arguments.op;
  check_range(op, "n_select", n_select, 1);
  check_enough_rows(arguments, n_select);
  check_launch(arguments);
  const int64_t batch = arguments.batch;
  check_workspace(op, 8.0 * double(batch) * (double(arguments.dim) + double(arguments.width)));
  const SelectionInputs inputs(arguments);
  const CudaContext context(op, pool);
  FwProblem problem{};
  problem.pool = inputs.pool(), problem.query = inputs.query(), problem.batch = batch;
  problem.n_select = int(n_select);
  const Tensor workspace = context.workspace(pool, correlation_bytes(problem.pool, batch));
  const SelectionTensors tensors(pool, batch, n_select);
  check_cuda(
      op, launch_knn(problem, workspace.mutable_data_ptr(), outputs_of(tensors), context.stream()));
  return tensors.tuple();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hullft_ops, CUDA, m) { m.impl("knn_select", TORCH_BOX(&knn_select)); }

}  // namespace hullft
