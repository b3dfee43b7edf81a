// sift_select and sift_select_indexed on CUDA. Schemas: csrc/ops.cpp.
#include "../cuda/sift.h"

#include <torch/csrc/stable/library.h>

#include "../host/sift_options.h"
#include "context.h"
#include "views.h"

namespace hullft {
namespace {

PickTensors::Tuple select(const char* op, const Tensor& pool, int64_t batch,
                          const SelectionInputs& inputs, const SiftOptions& options) {
  check_launch(op, batch, inputs.candidates());
  check_range(op, "the number of targets", options.n_targets, 1);
  // Of one query, as a batch is solved in parts.
  const double n = double(options.n_select), n_targets = double(options.n_targets);
  check_workspace(op, 8 * (double(inputs.candidates()) * (n + n_targets + 3) + 4 * n + n_targets));
  const CudaContext context(op, pool);
  const SiftProblem problem{inputs.pool(),         inputs.query(),         batch,
                            int(options.n_select), int(options.n_targets), options.noise};
  const SiftPlan plan = plan_sift(problem, context.limits());
  const Tensor workspace = context.workspace(pool, plan.workspace_bytes);
  const SelectionTensors selection(pool, batch, options.n_select);
  const PickTensors picks(pool, batch, options.n_select);
  const SiftOutputs outputs{outputs_of(selection), picks.picks.mutable_data_ptr<int64_t>(),
                            picks.variance.mutable_data_ptr()};
  check_cuda(op,
             launch_sift(problem, plan, workspace.mutable_data_ptr(), outputs, context.stream()));
  return picks.after(selection.tuple());
}

PickTensors::Tuple sift_select(const Tensor& pool, const Tensor& query, int64_t n_select,
                               double noise, const std::optional<Tensor>& pool_sizes) {
  constexpr const char* op = "sift_select";
  const PoolShape shape = check_sift_query(op, "pool", pool, query);
  const SiftOptions options = check_sift_options(op, query, n_select, noise);
  check_sizes(op, "pool_sizes", pool_sizes, "pool", pool, shape.batch);
  const SelectionInputs inputs(pool, torch::stable::contiguous(query), pool_sizes);
  return select(op, pool, shape.batch, inputs, options);
}

PickTensors::Tuple sift_select_indexed(const Tensor& embeddings, const Tensor& candidates,
                                       const Tensor& query, int64_t n_select, double noise,
                                       const std::optional<Tensor>& pool_sizes) {
  constexpr const char* op = "sift_select_indexed";
  check_dim(op, "embeddings", embeddings, 2);
  const PoolShape shape = check_sift_query(op, "embeddings", embeddings, query);
  const SiftOptions options = check_sift_options(op, query, n_select, noise);
  check_candidates_shape(op, candidates, embeddings, shape.batch);
  check_sizes(op, "pool_sizes", pool_sizes, "embeddings", embeddings, shape.batch);
  SelectionInputs inputs(embeddings, torch::stable::contiguous(query), pool_sizes);
  inputs.pick(candidates);
  return select(op, embeddings, shape.batch, inputs, options);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hullft_ops, CUDA, m) {
  m.impl("sift_select", TORCH_BOX(&sift_select));
  m.impl("sift_select_indexed", TORCH_BOX(&sift_select_indexed));
}

}  // namespace hullft
