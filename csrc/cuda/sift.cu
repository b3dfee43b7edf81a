// Plans and launches of the SIFT kernel.
#include <algorithm>

#include "block_launch.cuh"
#include "gram.h"
#include "parts.h"
#include "sift.h"
#include "sift_block.cuh"

namespace hullft {
namespace {

// Shared memory of the kernel besides the state.
constexpr int64_t kFixedSharedBytes = 1024;

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

SiftPlan plan_sift(const SiftProblem& p, const LaunchLimits& limits) {
  return choose_columns(
      p.pool, p.batch, p.n_select, limits,
      [&](const LaunchLimits& within, bool gram) { return plan_sift_columns(p, within, gram); });
}

SiftPlan plan_sift_columns(const SiftProblem& p, const LaunchLimits& limits, bool gram) {
  const int64_t width = p.pool.width, real_bytes = real_bytes_of(p.pool.storage);
  const auto aligned = [](int64_t bytes) { return (bytes + 15) / 16 * 16; };
  SiftPlan plan;
  plan.gram = gram;
  plan.threads = threads_for(p.pool.width, p.pool.storage);
  plan.state_bytes = sift_state_bytes(width, p.n_select, p.n_targets, real_bytes);
  plan.shared_limit = limits.shared_bytes - kFixedSharedBytes;
  plan.shared_state = plan.state_bytes <= plan.shared_limit;
  const int64_t gram_bytes = gram ? width * width * real_bytes : 0;
  const int64_t state_bytes = plan.shared_state ? 0 : plan.state_bytes;
  const int64_t column_bytes = p.n_select * width * real_bytes;
  plan.gram_stride = n_pools(p.pool, p.batch) == 1 ? 0 : gram_bytes;
  const int64_t all_bytes = plan.gram_stride ? 0 : gram_bytes;
  plan.part = queries_of_part(p.batch, state_bytes + plan.gram_stride + column_bytes,
                              all_bytes + 15,  // of alignment
                              limits.workspace_bytes);
  plan.gram_offset = plan.part * state_bytes;
  plan.columns_offset = plan.gram_offset + aligned(plan.part * plan.gram_stride + all_bytes);
  plan.workspace_bytes = plan.columns_offset + plan.part * column_bytes;
  return plan;
}

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
      const cudaError_t status = launch_grams(rest_of(all.pool, first), part.batch, gram, stream);
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
