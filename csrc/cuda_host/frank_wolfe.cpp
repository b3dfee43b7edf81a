// fw_select and fw_select_indexed on CUDA. Schemas: csrc/ops.cpp.
#include "../cuda/frank_wolfe.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "../host/fw_options.h"
#include "context.h"
#include "views.h"

namespace hullft {
namespace {

SelectionTensors::Tuple select(const char* op, const Tensor& pool, int64_t batch,
                               const SelectionInputs& inputs, const FwOptions& options) {
  check_launch(op, batch, inputs.candidates());
  // Of one query, as a batch is solved in parts: its state, and the column of every atom.
  constexpr double kStateBytes = 128, kMoreAtoms = 64;
  const double candidates = double(inputs.candidates());
  const double atoms = std::min(candidates, double(options.n_select) + kMoreAtoms);
  check_workspace(op, kStateBytes * (candidates + atoms) + 8 * candidates * atoms);
  const CudaContext context(op, pool);
  const FwProblem problem{inputs.pool(),         inputs.query(),        batch,
                          int(options.n_select), int(options.max_iter), int(options.swap_passes),
                          options.tol,           options.gap_tol,       options.variant};
  const FwPlan plan = plan_frank_wolfe(problem, context.limits());
  const Tensor workspace = context.workspace(pool, plan.workspace_bytes);
  const SelectionTensors tensors(pool, batch, options.n_select);
  check_cuda(op, launch_frank_wolfe(problem, plan, workspace.mutable_data_ptr(),
                                    outputs_of(tensors), context.stream()));
  return tensors.tuple();
}

SelectionTensors::Tuple fw_select(const Tensor& pool, const Tensor& query, int64_t n_select,
                                  int64_t max_iter, double tol, double gap_tol,
                                  const std::string& variant, int64_t swap_passes,
                                  const std::optional<Tensor>& pool_sizes) {
  constexpr const char* op = "fw_select";
  const PoolShape shape = check_pool_query(op, "pool", pool, query);
  const FwOptions options =
      check_fw_options(op, n_select, max_iter, tol, gap_tol, variant, swap_passes);
  check_sizes(op, "pool_sizes", pool_sizes, "pool", pool, shape.batch);
  return select(op, pool, shape.batch, SelectionInputs(pool, query, pool_sizes), options);
}

SelectionTensors::Tuple fw_select_indexed(const Tensor& embeddings, const Tensor& candidates,
                                          const Tensor& query, int64_t n_select, int64_t max_iter,
                                          double tol, double gap_tol, const std::string& variant,
                                          int64_t swap_passes,
                                          const std::optional<Tensor>& pool_sizes) {
  constexpr const char* op = "fw_select_indexed";
  check_dim(op, "embeddings", embeddings, 2);
  const PoolShape shape = check_pool_query(op, "embeddings", embeddings, query);
  const FwOptions options =
      check_fw_options(op, n_select, max_iter, tol, gap_tol, variant, swap_passes);
  check_candidates_shape(op, candidates, embeddings, shape.batch);
  check_sizes(op, "pool_sizes", pool_sizes, "embeddings", embeddings, shape.batch);
  SelectionInputs inputs(embeddings, query, pool_sizes);
  inputs.pick(candidates);
  return select(op, embeddings, shape.batch, inputs, options);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hullft_ops, CUDA, m) {
  m.impl("fw_select", TORCH_BOX(&fw_select));
  m.impl("fw_select_indexed", TORCH_BOX(&fw_select_indexed));
}

}  // namespace hullft
