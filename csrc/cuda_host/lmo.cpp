// fw_lmo on CUDA. Schema: csrc/ops.cpp.
#include "../cuda/lmo.h"

#include <torch/csrc/stable/library.h>

#include "../cuda/correlate.h"
#include "context.h"
#include "views.h"

namespace hullft {
namespace {

LmoTensors::Tuple fw_lmo(const Tensor& pool, const Tensor& query, const Tensor& current,
                         const std::optional<Tensor>& pool_sizes) {
  const SelectionArguments arguments =
      check_arguments("fw_lmo", "pool", pool, query, "pool_sizes", pool_sizes);
  const char* op = arguments.op;
  check_current(arguments, current);
  check_launch(arguments);
  const int64_t batch = arguments.batch;
  check_workspace(op, 8.0 * double(batch) * (double(arguments.dim) + double(arguments.width)));
  const CudaContext context(op, pool);
  const SelectionInputs inputs(arguments);
  const Tensor at = with_dense_rows(current);
  const LmoProblem problem{
      inputs.pool(), inputs.query(), {at.const_data_ptr(), at.stride(0)}, batch};
  const Tensor workspace = context.workspace(pool, correlation_bytes(problem.pool, batch));
  const LmoTensors out(pool, batch);
  const LmoOutputs raw{out.vertex.mutable_data_ptr<int64_t>(), out.correlation.mutable_data_ptr(),
                       out.gamma.mutable_data_ptr(), out.gap.mutable_data_ptr()};
  check_cuda(op, launch_lmo(problem, workspace.mutable_data_ptr(), raw, context.stream()));
  return out.tuple();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hullft_ops, CUDA, m) { m.impl("fw_lmo", TORCH_BOX(&fw_lmo)); }

}  // namespace hullft
