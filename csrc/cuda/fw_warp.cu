#include "early_launch.cuh"
#include "fw_warp.cuh"

namespace hullft {
namespace {

template <typename S>
__global__ void __launch_bounds__(kFwWarpThreads, 8 / int(sizeof(S)))
    fw_warp_kernel(FwProblem problem, const S* products, const S* grams, int64_t gram_stride,
                   FwOutputs outputs) {
  __shared__ FwWarpShared<S> shared;
  const int64_t query = blockIdx.x;
  FwWarp<S> solver(problem, query, products + query * problem.pool.width,
                   grams + query * gram_stride, shared);
  solver.solve(outputs);
}

template <typename S>
cudaError_t launch(const FwProblem& problem, const SolverPlan& plan, void* workspace,
                   const FwOutputs& outputs, cudaStream_t stream) {
  return launch_early(fw_warp_kernel<S>, dim3(unsigned(problem.batch)),
                      dim3(unsigned(plan.threads)), stream, problem,
                      static_cast<const S*>(workspace),
                      in_workspace<const S>(workspace, plan.columns_offset),
                      plan.column_stride / int64_t(sizeof(S)), outputs);
}

}  // namespace

cudaError_t launch_fw_warp(const FwProblem& problem, const SolverPlan& plan, void* workspace,
                           const FwOutputs& outputs, cudaStream_t stream) {
  const bool wide = problem.pool.storage == Storage::kFloat64;
  return (wide ? launch<double> : launch<float>)(problem, plan, workspace, outputs, stream);
}

}  // namespace hullft
