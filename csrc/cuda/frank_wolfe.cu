// Launches of the Frank-Wolfe kernels.
#include <algorithm>

#include "block_launch.cuh"
#include "frank_wolfe.h"
#include "fw_block.cuh"
#include "fw_warp.h"
#include "gram.h"
#include "parts.h"

namespace hullft {
namespace {

template <typename S, bool kSharedState>
__global__ void __launch_bounds__(kMaxThreads<S>, 1)
    fw_kernel(FwProblem problem, FwPlan plan, unsigned char* workspace, FwOutputs outputs) {
  HULLFT_DYNAMIC_SHARED(shared);
  __shared__ FwControl<S> control;
  __shared__ BlockScratch scratch;
  const int64_t query = blockIdx.x;
  unsigned char* memory = kSharedState ? shared : workspace + query * plan.state_bytes;
  S* columns = reinterpret_cast<S*>(workspace + plan.columns_offset + query * plan.column_stride);
  FwBlock<S> block(problem, plan, query, carve_state<S>(memory, problem.pool.width, plan.slots),
                   columns, control, scratch);
  block.solve(outputs);
}

template <typename S, bool kSharedState>
cudaError_t launch(const FwProblem& problem, const FwPlan& plan, void* workspace,
                   const FwOutputs& outputs, cudaStream_t stream) {
  size_t shared_bytes = 0;
  if constexpr (kSharedState) {
    shared_bytes = size_t(plan.state_bytes);
    const cudaError_t status = allow_shared(fw_kernel<S, true>, plan.shared_limit);
    if (status != cudaSuccess) return status;
  }
  HULLFT_LAUNCH((fw_kernel<S, kSharedState>), dim3(unsigned(problem.batch)),
                dim3(unsigned(plan.threads)), shared_bytes, stream, problem, plan,
                static_cast<unsigned char*>(workspace), outputs);
  return cudaGetLastError();
}

template <typename S>
cudaError_t launch_solve(const FwProblem& problem, const FwPlan& plan, void* workspace,
                         const FwOutputs& outputs, cudaStream_t stream) {
  return plan.shared_state ? launch<S, true>(problem, plan, workspace, outputs, stream)
                           : launch<S, false>(problem, plan, workspace, outputs, stream);
}

// The Gram matrices, and for a warp that takes the steps the products with the queries.
cudaError_t launch_grams(const FwProblem& problem, const FwPlan& plan, void* workspace,
                         cudaStream_t stream) {
  void* gram = static_cast<unsigned char*>(workspace) + plan.columns_offset;
  GramProblem grams = grams_of(problem.pool, problem.batch, gram);
  if (plan.warp) {
    grams.query = problem.query, grams.products = workspace;
    grams.queries = int(problem.batch / grams.pools);
  }
  return launch_gram(grams, plan.sms, stream);
}

cudaError_t launch_warp(const FwProblem& problem, const FwPlan& plan, void* workspace,
                        const FwOutputs& outputs, cudaStream_t stream) {
  const void* grams = static_cast<unsigned char*>(workspace) + plan.columns_offset;
  return launch_fw_warp(problem, workspace, grams,
                        plan.column_stride / real_bytes_of(problem.pool.storage), plan.threads,
                        outputs, stream);
}

}  // namespace

cudaError_t launch_frank_wolfe(const FwProblem& problem, const FwPlan& plan, void* workspace,
                               const FwOutputs& outputs, cudaStream_t stream) {
  const int64_t real_bytes = real_bytes_of(problem.pool.storage);
  for (int64_t first = 0; first < problem.batch; first += plan.part) {
    const FwProblem part = part_of(problem, first, plan.part);
    const FwOutputs out = rest_of(outputs, first, problem.n_select, real_bytes);
    if (plan.gram && (first == 0 || plan.column_stride || plan.warp)) {
      const cudaError_t status = launch_grams(part, plan, workspace, stream);
      if (status != cudaSuccess) return status;
    }
    const cudaError_t status = plan.warp ? launch_warp(part, plan, workspace, out, stream)
                               : problem.pool.storage == Storage::kFloat64
                                   ? launch_solve<double>(part, plan, workspace, out, stream)
                                   : launch_solve<float>(part, plan, workspace, out, stream);
    if (status != cudaSuccess) return status;
  }
  return cudaSuccess;
}

}  // namespace hullft
