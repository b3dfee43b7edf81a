// knn_select on CUDA. Schema: csrc/ops.cpp.
#include "../cuda/knn.h"

#include <torch/csrc/stable/library.h>

#include "context.h"
#include "views.h"

namespace hullft {
namespace {

SelectionTensors::Tuple knn_select(const Tensor& pool, const Tensor& query, int64_t n_select,
                                   const std::optional<Tensor>& pool_sizes) {
  constexpr const char* op = "knn_select";
  const PoolShape shape = check_pool_query(op, "pool", pool, query);
  check_range(op, "n_select", n_select, 1);
  check_sizes(op, "pool_sizes", pool_sizes, "pool", pool, shape.batch);
  check_enough_rows(op, n_select, shape);
  check_launch(op, shape.batch, shape.candidates);
  check_workspace(op, 8.0 * double(shape.batch) * (double(shape.dim) + double(shape.candidates)));
  const CudaContext context(op, pool);
  const SelectionInputs inputs(pool, query, pool_sizes);
  const KnnProblem problem{inputs.pool(), inputs.query(), shape.batch, int(n_select)};
  const Tensor workspace = context.workspace(pool, knn_workspace_bytes(problem));
  const SelectionTensors tensors(pool, shape.batch, n_select);
  check_cuda(
      op, launch_knn(problem, workspace.mutable_data_ptr(), outputs_of(tensors), context.stream()));
  return tensors.tuple();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hullft_ops, CUDA, m) { m.impl("knn_select", TORCH_BOX(&knn_select)); }

}  // namespace hullft
