// Launches of the SIFT kernel.
#include "block_launch.cuh"
#include "gram.h"
#include "sift.h"
#include "sift_block.cuh"

namespace hullft {
namespace {

template <typename S, bool kSharedState>
__global__ void __launch_bounds__(kMaxThreads<S>, 1)
    sift_kernel(SiftProblem problem, SolverPlan plan, unsigned char* workspace,
                SiftOutputs outputs) {
  HULLFT_DYNAMIC_SHARED(shared);
  __shared__ BlockScratch scratch;
  const int64_t query = blockIdx.x;
  unsigned char* memory = kSharedState ? shared : workspace + query * plan.state_bytes;
  const unsigned char* gram = workspace + plan.columns_offset + query * plan.column_stride;
  S* columns = reinterpret_cast<S*>(workspace + plan.behind_offset) +
               query * problem.n_select * problem.pool.width;
  __shared__ SiftState<S> state;  // its ten pointers in registers would spill others (nvcc 13.0)
  if (threadIdx.x == 0) state = carve_sift_state<S>(memory, problem);
  __syncthreads();
  SiftBlock<S> block(problem, query, state, plan.gram ? reinterpret_cast<const S*>(gram) : nullptr,
                     columns, scratch);
  block.solve(outputs);
}

template <typename S>
cudaError_t launch_blocks(const SiftProblem& problem, const SolverPlan& plan, void* workspace,
                          const SiftOutputs& outputs, cudaStream_t stream) {
  return launch_solver(sift_kernel<S, true>, sift_kernel<S, false>, problem, plan, workspace,
                       outputs, stream);
}

}  // namespace

static SiftOutputs rest_of(const SiftOutputs& out, int64_t first, int n_select,
                           int64_t real_bytes) {
  const int64_t rows = first * n_select;
  return {rest_of(out.selection, first, n_select, real_bytes), out.picks + rows,
          static_cast<char*>(out.variance) + rows * real_bytes};
}

cudaError_t launch_sift(const SiftProblem& problem, const SolverPlan& plan, void* workspace,
                        const SiftOutputs& outputs, cudaStream_t stream) {
  const bool wide = problem.pool.storage == Storage::kFloat64;
  const auto launch = wide ? launch_blocks<double> : launch_blocks<float>;
  const auto launch_part = [&](SiftProblem part, const SiftOutputs& out, bool is_first) {
    cudaError_t status = cudaSuccess;
    if (plan.gram && (is_first || plan.column_stride))
      status = launch_gram(grams_of(plan, part.pool, part.batch, workspace), plan.sms, stream);
    const int64_t target_bytes = part.pool.d * bytes_of(part.pool.storage);
    if (part.n_targets > 1 && target_bytes % 16 != 0) part.pool.vectors = false;
    return status == cudaSuccess ? launch(part, plan, workspace, out, stream) : status;
  };
  return launch_parts(problem, outputs, plan.part, launch_part);
}

}  // namespace hullft
