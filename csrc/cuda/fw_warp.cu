#include "early_launch.cuh"
#include "fw_warp.cuh"
#include "fw_warp.h"

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
cudaError_t launch_of(const FwProblem& problem, const void* products, const void* grams,
                      int64_t gram_stride, int threads, const FwOutputs& outputs,
                      cudaStream_t stream) {
  return launch_early(fw_warp_kernel<S>, dim3(unsigned(problem.batch)), dim3(unsigned(threads)),
                      stream, problem, static_cast<const S*>(products),
                      static_cast<const S*>(grams), gram_stride, outputs);
}

}  // namespace

cudaError_t launch_fw_warp(const FwProblem& problem, const void* products, const void* grams,
                           int64_t gram_stride, int threads, const FwOutputs& outputs,
                           cudaStream_t stream) {
  const bool wide = problem.pool.storage == Storage::kFloat64;
  const auto launch = wide ? launch_of<double> : launch_of<float>;
  return launch(problem, products, grams, gram_stride, threads, outputs, stream);
}

}  // namespace hullft
