// fw_select and fw_select_indexed on the CPU. Schemas: csrc/ops.cpp.
#include <torch/csrc/stable/library.h>

#include "fw_solver.h"
#include "kept_solver.h"
#include "memory.h"
#include "select_batch.h"

namespace hullft {
namespace {

SelectionOutput::Tensors fw_select(const Tensor& pool, const Tensor& query, int64_t n_select,
                                   int64_t max_iter, double tol, double gap_tol,
                                   const std::string& variant, int64_t swap_passes,
                                   const std::optional<Tensor>& pool_sizes) {
  constexpr const char* op = "fw_select";
  const PoolShape shape = check_pool_query(op, "pool", pool, query);
  const FwOptions options =
      check_fw_options(op, n_select, max_iter, tol, gap_tol, variant, swap_passes);
  check_sizes(op, "pool_sizes", pool_sizes, pool, shape.batch);
  check_memory(op, n_select, shape.batch, shape.candidates,
               selection_bytes(n_select, shape.batch, shape.candidates));
  const Sizes sizes(op, "pool_sizes", pool_sizes, shape.candidates, shape.batch);
  const Tensor dense_pool = with_dense_rows(pool), dense_query = with_dense_rows(query);
  const SelectionOutput output(pool, shape.batch, n_select);
  dispatch_floating(pool.scalar_type(), [&](auto t) {
    using T = decltype(t);
    select_batch<T>(op, "pool", pool_of<T>(dense_pool), dense_query, sizes, shape.dim, output,
                    [&] { return KeptSolver<FwQuerySolver<T>, FwOptions>(options); });
  });
  return output.tensors();
}

SelectionOutput::Tensors fw_select_indexed(const Tensor& embeddings, const Tensor& candidates,
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
  check_sizes(op, "pool_sizes", pool_sizes, embeddings, shape.batch);
  const int64_t width = candidates.size(1);
  check_memory(op, n_select, shape.batch, width,
               selection_bytes(n_select, shape.batch, width) + bytes_of(candidates));
  const Sizes sizes(op, "pool_sizes", pool_sizes, width, shape.batch);
  const Tensor picked = torch::stable::contiguous(candidates);
  check_candidates(op, picked, sizes, shape.candidates);
  const Tensor dense = with_dense_rows(embeddings), dense_query = with_dense_rows(query);
  const SelectionOutput output(embeddings, shape.batch, n_select);
  dispatch_floating(embeddings.scalar_type(), [&](auto t) {
    using T = decltype(t);
    select_batch<T>(op, "embeddings", pool_of<T>(dense, picked), dense_query, sizes, shape.dim,
                    output, [&] { return KeptSolver<FwQuerySolver<T>, FwOptions>(options); });
  });
  return output.tensors();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hullft_ops, CPU, m) {
  m.impl("fw_select", TORCH_BOX(&fw_select));
  m.impl("fw_select_indexed", TORCH_BOX(&fw_select_indexed));
}

}  // namespace hullft
