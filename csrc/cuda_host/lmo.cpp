// fw_lmo on CUDA. Schema: csrc/ops.cpp.
#include "../cuda/lmo.h"

#include <torch/csrc/stable/library.h>

#include "context.h"
#include "views.h"

namespace hullft {
namespace {

LmoTensors::Tuple fw_lmo(const Tensor& pool, const Tensor& query, const Tensor& current,
                         const std::optional<Tensor>& pool_sizes) {
  constexpr const char* op = "fw_lmo";
  const PoolShape shape = check_pool_query(op, "pool", pool, query);
  check_current(op, current, query);
  check_sizes(op, "pool_sizes", pool_sizes, "pool", pool, shape.batch);
  check_launch(op, shape.batch, shape.candidates);
  check_workspace(op, 8.0 * double(shape.batch) * (double(shape.dim) + double(shape.candidates)));
  const CudaContext context(op, pool);
  const SelectionInputs inputs(pool, query, pool_sizes);
  const Tensor at = with_dense_rows(current);
  const LmoProblem problem{
      inputs.pool(), inputs.query(), {at.const_data_ptr(), at.stride(0)}, shape.batch};
  const Tensor workspace = context.workspace(pool, lmo_workspace_bytes(problem));
  const LmoTensors out(pool, shape.batch);
  const LmoOutputs raw{out.vertex.mutable_data_ptr<int64_t>(), out.correlation.mutable_data_ptr(),
                       out.gamma.mutable_data_ptr(), out.gap.mutable_data_ptr()};
  check_cuda(op, launch_lmo(problem, workspace.mutable_data_ptr(), raw, context.stream()));
  return out.tuple();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hullft_ops, CUDA, m) { m.impl("fw_lmo", TORCH_BOX(&fw_lmo)); }

}  // namespace hullft
