// Launches of the corrective kernel.
#include "block_launch.cuh"
#include "fw_corrective.cuh"
#include "fw_tableau.h"
#include "gram.h"
#include "long_rows.h"
#include "parts.h"

namespace hullft {
namespace {

// kConstraint: a Constraint, as a number so that the kernel's name can be read.
template <typename S, bool kSharedState, int kConstraint>
__global__ void __launch_bounds__(kMaxThreads<S>, 1)
    fw_corrective_kernel(FwProblem problem, CorrectivePlan plan, unsigned char* workspace,
                         FwOutputs outputs) {
  HULLFT_DYNAMIC_SHARED(shared);
  __shared__ CorrectiveControl<S> control;
  __shared__ BlockScratch scratch;
  const int64_t query = blockIdx.x;
  unsigned char* memory =
      kSharedState ? shared : workspace + plan.states_offset + query * plan.state_bytes;
  const int width = problem.pool.width;
  FwCorrective<Constraint(kConstraint), S> block(
      problem, plan, query, carve_corrective<S>(memory, width, plan.capacity),
      reinterpret_cast<const S*>(workspace) + query * width,
      reinterpret_cast<S*>(workspace + plan.columns_offset + query * plan.column_stride),
      long_rows_of<S>(plan, workspace), control, scratch);
  block.solve(outputs);
}

template <typename S, bool kSharedState, int kConstraint>
cudaError_t launch(const FwProblem& problem, const CorrectivePlan& plan, void* workspace,
                   const FwOutputs& outputs, cudaStream_t stream) {
  size_t shared_bytes = 0;
  if constexpr (kSharedState) {
    shared_bytes = size_t(plan.state_bytes);
    const cudaError_t status =
        allow_shared(fw_corrective_kernel<S, true, kConstraint>, plan.shared_limit);
    if (status != cudaSuccess) return status;
  }
  HULLFT_LAUNCH((fw_corrective_kernel<S, kSharedState, kConstraint>), dim3(unsigned(problem.batch)),
                dim3(unsigned(plan.threads)), shared_bytes, stream, problem, plan,
                static_cast<unsigned char*>(workspace), outputs);
  return cudaGetLastError();
}

template <typename S, int kConstraint>
auto launch_of(const CorrectivePlan& plan) {
  return plan.shared_state ? launch<S, true, kConstraint> : launch<S, false, kConstraint>;
}

template <typename S>
auto launch_of(Constraint constraint, const CorrectivePlan& plan) {
  return constraint == Constraint::kSimplex ? launch_of<S, int(Constraint::kSimplex)>(plan)
                                            : launch_of<S, int(Constraint::kNonNegative)>(plan);
}

// The Gram matrices, and the products of the rows with the queries.
cudaError_t launch_grams(const FwProblem& problem, const CorrectivePlan& plan, void* workspace,
                         cudaStream_t stream) {
  void* gram = static_cast<unsigned char*>(workspace) + plan.columns_offset;
  GramProblem grams = grams_of(problem.pool, problem.batch, gram);
  grams.query = problem.query, grams.products = workspace;
  grams.queries = int(problem.batch / grams.pools);
  grams.shares = plan.shares;
  grams.partial = partial_of(plan, workspace), grams.wide = plan.wide;
  return launch_gram(grams, plan.sms, stream);
}

// The squares of the queries, or of solved queries the residuals.
template <typename S>
cudaError_t launch_distances_of(const FwProblem& problem, const CorrectivePlan& plan,
                                void* workspace, const FwOutputs* solved, cudaStream_t stream) {
  const LongRows<S> rows = long_rows_of<S>(plan, workspace);
  DistanceProblem distances{};
  distances.pool = problem.pool, distances.query = problem.query, distances.batch = problem.batch;
  distances.shares = plan.shares, distances.partial = partial_of(plan, workspace);
  distances.out = rows.squares;
  if (solved) {
    distances.support = {rows.atoms, rows.weights, solved->support_size, solved->num_iter,
                         plan.capacity};
    distances.out = solved->residual;
  }
  return launch_distances(distances, stream);
}

// One part of a batch.
template <typename S>
cudaError_t launch_part(const FwProblem& part, Constraint constraint, const CorrectivePlan& plan,
                        void* workspace, const FwOutputs& out, cudaStream_t stream) {
  cudaError_t status = cudaSuccess;
  const bool is_long = plan.shares.count > 0;
  if (plan.gram) status = launch_grams(part, plan, workspace, stream);
  if (status == cudaSuccess && is_long)
    status = launch_distances_of<S>(part, plan, workspace, nullptr, stream);
  if (status == cudaSuccess)
    status = plan.tableau ? launch_tableau(part, constraint, plan, workspace, out, stream)
                          : launch_of<S>(constraint, plan)(part, plan, workspace, out, stream);
  if (status == cudaSuccess && is_long)
    status = launch_distances_of<S>(part, plan, workspace, &out, stream);
  return status;
}

}  // namespace

cudaError_t launch_corrective(const FwProblem& problem, Constraint constraint,
                              const CorrectivePlan& plan, void* workspace, const FwOutputs& outputs,
                              cudaStream_t stream) {
  const bool wide = problem.pool.storage == Storage::kFloat64;
  const auto launch = wide ? launch_part<double> : launch_part<float>;
  const int64_t real_bytes = real_bytes_of(problem.pool.storage);
  for (int64_t first = 0; first < problem.batch; first += plan.part) {
    const FwProblem part = part_of(problem, first, plan.part);
    const FwOutputs out = rest_of(outputs, first, problem.n_select, real_bytes);
    const cudaError_t status = launch(part, constraint, plan, workspace, out, stream);
    if (status != cudaSuccess) return status;
  }
  return cudaSuccess;
}

}  // namespace hullft
