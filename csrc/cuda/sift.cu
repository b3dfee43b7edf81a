// Launches of the SIFT kernel.
#include <algorithm>

#include "block_launch.cuh"
#include "gram.h"
#include "parts.h"
#include "sift.h"
#include "sift_block.cuh"

namespace hullft {
namespace {

template <typename S, bool kSharedState>
__global__ void __launch_bounds__(kMaxThreads<S>, 1)
    sift_kernel(SiftProblem problem, SiftPlan plan, unsigned char* workspace, SiftOutputs outputs) {
  HULLFT_DYNAMIC_SHARED(shared);
  __shared__ BlockScratch scratch;
  const int64_t query = blockIdx.x;
  unsigned char* memory = kSharedState ? shared : workspace + query * plan.state_bytes;
  const unsigned char* gram = workspace + plan.gram_offset + query * plan.gram_stride;
  S* columns = reinterpret_cast<S*>(workspace + plan.columns_offset) +
               query * problem.n_select * problem.pool.width;
  SiftBlock<S> block(problem, query, carve_sift_state<S>(memory, problem),
                     plan.gram ? reinterpret_cast<const S*>(gram) : nullptr, columns, scratch);
  block.solve(outputs);
}

template <typename S, bool kSharedState>
cudaError_t launch(const SiftProblem& problem, const SiftPlan& plan, void* workspace,
                   const SiftOutputs& outputs, cudaStream_t stream) {
  size_t shared_bytes = 0;
  if constexpr (kSharedState) {
    shared_bytes = size_t(plan.state_bytes);
    const cudaError_t status = allow_shared(sift_kernel<S, true>, plan.shared_limit);
    if (status != cudaSuccess) return status;
  }
  HULLFT_LAUNCH((sift_kernel<S, kSharedState>), dim3(unsigned(problem.batch)),
                dim3(unsigned(plan.threads)), shared_bytes, stream, problem, plan,
                static_cast<unsigned char*>(workspace), outputs);
  return cudaGetLastError();
}

template <typename S>
cudaError_t launch_state(const SiftProblem& problem, const SiftPlan& plan, void* workspace,
                         const SiftOutputs& outputs, cudaStream_t stream) {
  return plan.shared_state ? launch<S, true>(problem, plan, workspace, outputs, stream)
                           : launch<S, false>(problem, plan, workspace, outputs, stream);
}

SiftOutputs rest_of(const SiftOutputs& out, int64_t first, int n_select, int64_t real_bytes) {
  const int64_t rows = first * n_select;
  return {rest_of(out.selection, first, n_select, real_bytes), out.picks + rows,
          static_cast<char*>(out.variance) + rows * real_bytes};
}

}  // namespace

cudaError_t launch_sift(const SiftProblem& all, const SiftPlan& plan, void* workspace,
                        const SiftOutputs& outputs, cudaStream_t stream) {
  SiftProblem problem = all;
  const int64_t target_bytes = problem.pool.d * bytes_of(problem.pool.storage);
  if (problem.n_targets > 1 && target_bytes % 16 != 0) problem.pool.vectors = false;
  const int64_t real_bytes = real_bytes_of(problem.pool.storage);
  for (int64_t first = 0; first < problem.batch; first += plan.part) {
    const SiftProblem part = part_of(problem, first, plan.part);
    const SiftOutputs out = rest_of(outputs, first, problem.n_select, real_bytes);
    if (plan.gram && (first == 0 || plan.gram_stride)) {
      void* gram = static_cast<unsigned char*>(workspace) + plan.gram_offset;
      const GramProblem grams = grams_of(rest_of(all.pool, first), part.batch, gram);
      const cudaError_t status = launch_gram(grams, plan.sms, stream);
      if (status != cudaSuccess) return status;
    }
    const cudaError_t status = problem.pool.storage == Storage::kFloat64
                                   ? launch_state<double>(part, plan, workspace, out, stream)
                                   : launch_state<float>(part, plan, workspace, out, stream);
    if (status != cudaSuccess) return status;
  }
  return cudaSuccess;
}

}  // namespace hullft
