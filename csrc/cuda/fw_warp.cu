#include "early_launch.cuh"
#include "fw_warp.cuh"
#include "fw_warp.h"

namespace hullft {
namespace {

// kVariant: a Variant, as a number so that the kernel's name can be read.
template <typename S, int kVariant>
__global__ void __launch_bounds__(kFwWarpThreads, 8 / int(sizeof(S)))
    fw_warp_kernel(FwProblem problem, const S* products, const S* grams, int64_t gram_stride,
                   FwOutputs outputs) {
  __shared__ FwWarpShared<S> shared;
  const int64_t query = blockIdx.x;
  FwWarp<S, Variant(kVariant)> solver(problem, query, products + query * problem.pool.width,
                                      grams + query * gram_stride, shared);
  solver.solve(outputs);
}

template <typename S, int kVariant>
cudaError_t launch(const FwProblem& problem, const void* products, const void* grams,
                   int64_t gram_stride, int threads, const FwOutputs& outputs,
                   cudaStream_t stream) {
  return launch_early(fw_warp_kernel<S, kVariant>, dim3(unsigned(problem.batch)),
                      dim3(unsigned(threads)), stream, problem, static_cast<const S*>(products),
                      static_cast<const S*>(grams), gram_stride, outputs);
}

template <typename S>
auto launch_of(Variant variant) {
  switch (variant) {
    case Variant::kAway:
      return launch<S, int(Variant::kAway)>;
    case Variant::kPairwise:
      return launch<S, int(Variant::kPairwise)>;
    default:
      return launch<S, int(Variant::kVanilla)>;
  }
}

}  // namespace

cudaError_t launch_fw_warp(const FwProblem& problem, const void* products, const void* grams,
                           int64_t gram_stride, int threads, const FwOutputs& outputs,
                           cudaStream_t stream) {
  const auto launch = problem.pool.storage == Storage::kFloat64 ? launch_of<double>(problem.variant)
                                                                : launch_of<float>(problem.variant);
  return launch(problem, products, grams, gram_stride, threads, outputs, stream);
}

}  // namespace hullft
