// Launches of the corrective kernel.
#include "block_launch.cuh"
#include "fw_corrective.cuh"
#include "gram.h"

namespace hullft {
namespace {

// kConstraint: a Constraint, as a number so that the kernel's name can be read.
template <typename S, bool kSharedState, int kConstraint, typename R>
__global__ void __launch_bounds__(kMaxThreads<S>, 1)
    fw_corrective_kernel(FwProblem problem, SolverPlan plan, unsigned char* workspace,
                         FwOutputs outputs) {
  HULLFT_DYNAMIC_SHARED(shared);
  __shared__ FwControl<S> control;
  __shared__ BlockScratch scratch;
  const int64_t query = blockIdx.x;
  unsigned char* memory =
      kSharedState ? shared : workspace + plan.states_offset + query * plan.state_bytes;
  const int width = problem.pool.width;
  FwCorrective<Constraint(kConstraint), S, R> block(
      problem, plan, query, kSharedState ? nullptr : memory,
      carve_corrective<S>(memory, width, plan.slots),
      reinterpret_cast<const S*>(workspace) + query * width,
      reinterpret_cast<S*>(workspace + plan.columns_offset + query * plan.column_stride),
      long_rows_of<R>(plan, workspace), control, scratch);
  block.solve(outputs);
}

template <typename S, Constraint kConstraint, typename R = S>
cudaError_t launch_blocks(const FwProblem& problem, const SolverPlan& plan, void* workspace,
                          const FwOutputs& outputs, cudaStream_t stream) {
  return launch_solver(fw_corrective_kernel<S, true, int(kConstraint), R>,
                       fw_corrective_kernel<S, false, int(kConstraint), R>, problem, plan,
                       workspace, outputs, stream);
}

// Weights that are dense have float64 state.
using Launch = cudaError_t (*)(const FwProblem&, const SolverPlan&, void*, const FwOutputs&,
                               cudaStream_t);
Launch launch_of(const FwProblem& problem, Constraint constraint) {
  constexpr auto kSum = Constraint::kSimplex, kNone = Constraint::kNonNegative;
  const bool sum = constraint == kSum;
  if (problem.pool.storage == Storage::kFloat64)
    return sum ? launch_blocks<double, kSum> : launch_blocks<double, kNone>;
  if (!problem.dense) return launch_blocks<float, kSum>;
  return sum ? launch_blocks<double, kSum, float> : launch_blocks<double, kNone, float>;
}

// The squares of the queries, or of solved queries the residuals.
template <typename R>
cudaError_t launch_distances_of(const FwProblem& problem, const SolverPlan& plan, void* workspace,
                                const FwOutputs* solved, cudaStream_t stream) {
  const LongRows<R> rows = long_rows_of<R>(plan, workspace);
  DistanceProblem distances{problem.pool,
                            problem.query,
                            problem.batch,
                            plan.shares,
                            in_workspace<double>(workspace, plan.partial_offset),
                            rows.squares};
  if (solved) {
    distances.out = solved->residual, distances.slots = plan.slots;
    distances.support = rows.atoms, distances.weights = rows.weights;
    distances.sizes = solved->support_size, distances.asked = rows.squares;
  }
  return launch_distances(distances, stream);
}

// One part of a batch.
template <typename R>
cudaError_t launch_part(const FwProblem& part, Constraint constraint, const SolverPlan& plan,
                        void* workspace, const FwOutputs& out, cudaStream_t stream) {
  cudaError_t status = cudaSuccess;
  const bool is_long = plan.shares.count > 0;
  if (plan.gram) {
    GramProblem grams = grams_of(plan, part.pool, part.batch, workspace);
    add_queries(grams, part.query, part.batch, workspace);
    status = launch_gram(grams, plan.sms, stream);
  }
  if (status == cudaSuccess && is_long)
    status = launch_distances_of<R>(part, plan, workspace, nullptr, stream);
  if (status == cudaSuccess)
    status = plan.warp ? launch_tableau(part, constraint, plan, workspace, out, stream)
                       : launch_of(part, constraint)(part, plan, workspace, out, stream);
  if (status == cudaSuccess && is_long)
    status = launch_distances_of<R>(part, plan, workspace, &out, stream);
  return status;
}

}  // namespace

cudaError_t launch_corrective(const FwProblem& problem, Constraint constraint,
                              const SolverPlan& plan, void* workspace, const FwOutputs& outputs,
                              cudaStream_t stream) {
  const bool wide = problem.pool.storage == Storage::kFloat64;
  const auto launch = wide ? launch_part<double> : launch_part<float>;
  return launch_parts(problem, outputs, plan.part,
                      [&](const FwProblem& part, const FwOutputs& out, bool) {
                        return launch(part, constraint, plan, workspace, out, stream);
                      });
}

}  // namespace hullft
