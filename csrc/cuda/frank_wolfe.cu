// Plans and launches of the Frank-Wolfe kernel.
#include <algorithm>

#include "block_launch.cuh"
#include "correlate.h"
#include "frank_wolfe.h"
#include "fw_block.cuh"
#include "fw_warp.h"
#include "gram.h"
#include "parts.h"

namespace hullft {
namespace {

// Shared memory of the kernel besides the state.
constexpr int64_t kFixedSharedBytes = 1024;

// Columns that are kept after their atom has left the support: it often comes back.
constexpr int kSpareColumns = 32;

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

cudaError_t launch_warp(const FwProblem& problem, const FwPlan& plan, void* workspace,
                        const FwOutputs& outputs, cudaStream_t stream) {
  const cudaError_t status =
      launch_correlate_queries(problem.pool, problem.query, problem.batch, workspace, stream);
  if (status != cudaSuccess) return status;
  const void* grams = static_cast<unsigned char*>(workspace) + plan.columns_offset;
  return launch_fw_warp(problem, workspace, grams,
                        plan.column_stride / real_bytes_of(problem.pool.storage), plan.threads,
                        outputs, stream);
}

}  // namespace

FwPlan plan_frank_wolfe(const FwProblem& p, const LaunchLimits& limits) {
  return choose_columns(
      p.pool, p.batch, int64_t(p.n_select) + 1, limits,
      [&](const LaunchLimits& within, bool gram) { return plan_columns(p, within, gram); });
}

FwPlan plan_columns(const FwProblem& p, const LaunchLimits& limits, bool gram, bool warp) {
  const int64_t real_bytes = real_bytes_of(p.pool.storage);
  const int64_t width = p.pool.width;
  const int spare = p.variant == Variant::kVanilla ? 0 : kSpareColumns;
  FwPlan plan;
  plan.gram = gram;
  plan.warp = gram && warp && width <= kWarpCandidates;
  plan.slots = int(std::min(width, int64_t(p.n_select) + 1 + spare));
  plan.threads =
      plan.warp ? fw_warp_threads(p.batch, kFullDevice) : threads_for(p.pool.width, p.pool.storage);
  plan.state_bytes = fw_state_bytes(p.pool.width, plan.slots, real_bytes);
  plan.shared_limit = limits.shared_bytes - kFixedSharedBytes;
  plan.shared_state = plan.state_bytes <= plan.shared_limit;
  const int64_t column_bytes = (plan.gram ? width : plan.slots) * width * real_bytes;
  plan.column_stride = plan.gram && n_pools(p.pool, p.batch) == 1 ? 0 : column_bytes;
  const int64_t state_bytes = plan.warp ? aligned_bytes(width * real_bytes)  // its products
                              : plan.shared_state ? 0
                                                  : plan.state_bytes;
  const int64_t all_bytes = plan.column_stride ? 0 : column_bytes;
  plan.part =
      queries_of_part(p.batch, state_bytes + plan.column_stride, all_bytes, limits.workspace_bytes);
  plan.columns_offset = plan.part * state_bytes;
  plan.workspace_bytes = plan.columns_offset + plan.part * plan.column_stride + all_bytes;
  return plan;
}

cudaError_t launch_frank_wolfe(const FwProblem& problem, const FwPlan& plan, void* workspace,
                               const FwOutputs& outputs, cudaStream_t stream) {
  const int64_t real_bytes = real_bytes_of(problem.pool.storage);
  for (int64_t first = 0; first < problem.batch; first += plan.part) {
    const FwProblem part = part_of(problem, first, plan.part);
    const FwOutputs out = rest_of(outputs, first, problem.n_select, real_bytes);
    if (plan.gram && (first == 0 || plan.column_stride)) {
      void* gram = static_cast<unsigned char*>(workspace) + plan.columns_offset;
      const cudaError_t status = launch_grams(part.pool, part.batch, gram, stream);
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
