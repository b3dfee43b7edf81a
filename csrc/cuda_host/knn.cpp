// knn_select and knn_select_indexed on CUDA. Schemas: csrc/ops.cpp.
#include "../cuda/knn.h"

#include <torch/csrc/stable/library.h>

#include "context.h"
#include "views.h"

namespace hullft {
namespace {

SelectionTensors::Tuple select(const char* op, const Tensor& pool, const PoolShape& shape,
                               const SelectionInputs& inputs, int64_t n_select) {
  const int64_t candidates = inputs.candidates();
  check_enough_rows(op, n_select, candidates);
  check_launch(op, shape.batch, candidates);
  check_workspace(op, 8.0 * double(shape.batch) * (double(shape.dim) + double(candidates)));
  const CudaContext context(op, pool);
  const KnnProblem problem{inputs.pool(), inputs.query(), shape.batch, int(n_select)};
  const Tensor workspace = context.workspace(pool, knn_workspace_bytes(problem));
  const SelectionTensors tensors(pool, shape.batch, n_select);
  check_cuda(
      op, launch_knn(problem, workspace.mutable_data_ptr(), outputs_of(tensors), context.stream()));
  return tensors.tuple();
}

SelectionTensors::Tuple knn_select(const Tensor& pool, const Tensor& query, int64_t n_select,
                                   const std::optional<Tensor>& pool_sizes) {
  constexpr const char* op = "knn_select";
  const PoolShape shape = check_pool_query(op, "pool", pool, query);
  check_range(op, "n_select", n_select, 1);
  check_sizes(op, "pool_sizes", pool_sizes, "pool", pool, shape.batch);
  return select(op, pool, shape, SelectionInputs(pool, query, pool_sizes), n_select);
}

SelectionTensors::Tuple knn_select_indexed(const Tensor& embeddings, const Tensor& candidates,
                                           const Tensor& query, int64_t n_select,
                                           const std::optional<Tensor>& pool_sizes) {
  constexpr const char* op = "knn_select_indexed";
  check_dim(op, "embeddings", embeddings, 2);
  const PoolShape shape = check_pool_query(op, "embeddings", embeddings, query);
  check_range(op, "n_select", n_select, 1);
  check_candidates_shape(op, candidates, embeddings, shape.batch);
  check_sizes(op, "pool_sizes", pool_sizes, "embeddings", embeddings, shape.batch);
  SelectionInputs inputs(embeddings, query, pool_sizes);
  inputs.pick(candidates);
  return select(op, embeddings, shape, inputs, n_select);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hullft_ops, CUDA, m) {
  m.impl("knn_select", TORCH_BOX(&knn_select));
  m.impl("knn_select_indexed", TORCH_BOX(&knn_select_indexed));
}

}  // namespace hullft
