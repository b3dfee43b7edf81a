// fw_select and fw_select_indexed on the CPU. Schemas: csrc/ops.cpp.
#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "../memory.h"
#include "../select_batch.h"
#include "../thread_solver.h"
#include "fw_solver.h"

namespace hullft {
namespace {

// Of one query's pool in integers, and of what has a value a candidate.
double screening_bytes(const Tensor& pool, int64_t candidates, int64_t d) {
  constexpr double kCandidateBytes = 64;
  const bool screened = pool.scalar_type() != ScalarType::Double;
  const double row_bytes = screened ? 2.0 * double(quantized_width(d)) : 0;
  return double(candidates) * (row_bytes + kCandidateBytes);
}

// `fixed_bytes`: the bytes that do not depend on the sizes.
template <typename MakePool>
SelectionOutput::Tensors select(const char* op, const char* pool_name, const Tensor& pool,
                                const Tensor& query, const Sizes& sizes, int64_t width, int64_t d,
                                const FwOptions& options, double fixed_bytes,
                                const MakePool& make_pool) {
  const int64_t n = options.n_select, batch = query.size(0);
  check_memory(op, n, batch, width,
               fixed_bytes + at_once(batch) * screening_bytes(pool, sizes.largest(), d));
  const SelectionOutput output(pool, batch, n);
  const Tensor dense_query = with_dense_rows(query);
  // A column of the Gram matrix for each atom.
  const double work_a_row = double(d) * double(std::min(n, sizes.largest()));
  const double work = double(batch) * kStepsWork + work_a_row * sizes.total(batch);
  dispatch_floating(pool.scalar_type(), [&](auto t) {
    using T = decltype(t);
    select_batch<T>(op, pool_name, make_pool(t), dense_query, sizes, d, work, output,
                    [&] { return ThreadSolver<FwQuerySolver<T>, FwOptions>(options); });
  });
  return output.tensors();
}

SelectionOutput::Tensors fw_select(const Tensor& pool, const Tensor& query, int64_t n_select,
                                   int64_t max_iter, double tol, double gap_tol,
                                   const std::string& variant, int64_t swap_passes,
                                   const std::optional<Tensor>& pool_sizes) {
  constexpr const char* op = "fw_select";
  const PoolShape shape = check_pool_query(op, "pool", pool, query);
  const FwOptions options =
      check_fw_options(op, n_select, max_iter, tol, gap_tol, variant, swap_passes);
  check_sizes(op, "pool_sizes", pool_sizes, "pool", pool, shape.batch);
  const double fixed_bytes = selection_bytes(n_select, shape.batch, shape.candidates) +
                             copied_bytes(pool) + copied_bytes(query);
  check_memory(op, n_select, shape.batch, shape.candidates, fixed_bytes);
  const Sizes sizes(op, "pool_sizes", pool_sizes, shape.candidates, shape.batch);
  const Tensor dense = with_dense_rows(pool);
  return select(op, "pool", pool, query, sizes, shape.candidates, shape.dim, options, fixed_bytes,
                [&](auto t) { return pool_of<decltype(t)>(dense); });
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
  check_sizes(op, "pool_sizes", pool_sizes, "embeddings", embeddings, shape.batch);
  const int64_t width = candidates.size(1);
  const double fixed_bytes = selection_bytes(n_select, shape.batch, width) + bytes_of(candidates) +
                             copied_bytes(embeddings) + copied_bytes(query);
  check_memory(op, n_select, shape.batch, width, fixed_bytes);
  const Sizes sizes(op, "pool_sizes", pool_sizes, width, shape.batch);
  const Tensor picked = torch::stable::contiguous(candidates);
  check_candidates(op, picked, sizes, shape.candidates);
  const Tensor dense = with_dense_rows(embeddings);
  return select(op, "embeddings", embeddings, query, sizes, width, shape.dim, options, fixed_bytes,
                [&](auto t) { return pool_of<decltype(t)>(dense, picked); });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hullft_ops, CPU, m) {
  m.impl("fw_select", TORCH_BOX(&fw_select));
  m.impl("fw_select_indexed", TORCH_BOX(&fw_select_indexed));
}

}  // namespace hullft
