// Plans and launches of the Frank-Wolfe kernel.
#include <algorithm>

#include "frank_wolfe.h"
#include "fw_block.cuh"
#include "gram.h"

namespace hullft {
namespace {

// float64 takes twice the registers.
template <typename S>
constexpr int kMaxThreads = kMaxBlockWarps * kWarp * 4 / int(sizeof(S));

// Shared memory of the kernel besides the state.
constexpr int64_t kFixedSharedBytes = 1024;
// Columns that are kept after their atom has left the support: it often comes back.
constexpr int kSpareColumns = 32;
constexpr double kMaxGramBytes = 512 << 20;

// Cycles of an H100; csrc/cuda/README.md derives them. They say where the one way of making columns
// overtakes the other.
constexpr double kSms = 132;
constexpr double kGramProductsPerCycle = 51;  // of an SM, 40 % of its float32 units
constexpr double kSmBytesPerCycle = 40;       // that one block reads
constexpr double kDeviceBytesPerCycle = 1914;

// Pools that differ: a batch may share one.
int64_t n_pools(const FwProblem& p) {
  return p.pool.batch_stride == 0 && !p.pool.candidates ? 1 : p.batch;
}

bool gram_pays(const FwProblem& p) {
  const double k = p.pool.width, d = double(p.pool.d), pools = double(n_pools(p));
  if (pools * k * k * double(real_bytes_of(p.pool.storage)) > kMaxGramBytes) return false;
  const double gram = pools * k * (k + 32) / 2 * d / (kGramProductsPerCycle * kSms);
  const double rate =
      std::min(kSmBytesPerCycle * std::min(double(p.batch), kSms), kDeviceBytesPerCycle);
  const double columns = std::min(k, p.n_select + 1.0);
  return gram < double(p.batch) * columns * k * d * double(bytes_of(p.pool.storage)) / rate;
}

int threads_for(int width, Storage storage) {
  if (width <= 128) return 128;
  return width <= 1024 || storage == Storage::kFloat64 ? 256 : kMaxThreads<float>;
}

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
  const size_t shared_bytes = kSharedState ? size_t(plan.state_bytes) : 0;
  const cudaError_t status = cudaFuncSetAttribute(
      fw_kernel<S, kSharedState>, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes));
  if (status != cudaSuccess) return status;
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

}  // namespace

FwPlan plan_frank_wolfe(const FwProblem& p, int64_t max_shared_bytes) {
  return plan_columns(p, max_shared_bytes, gram_pays(p));
}

FwPlan plan_columns(const FwProblem& p, int64_t max_shared_bytes, bool gram) {
  const int64_t real_bytes = real_bytes_of(p.pool.storage);
  const int64_t width = p.pool.width;
  const int spare = p.variant == Variant::kVanilla ? 0 : kSpareColumns;
  FwPlan plan;
  plan.gram = gram;
  plan.slots = int(std::min(width, int64_t(p.n_select) + 1 + spare));
  plan.threads = threads_for(p.pool.width, p.pool.storage);
  plan.state_bytes = fw_state_bytes(p.pool.width, plan.slots, real_bytes);
  plan.shared_state = plan.state_bytes <= max_shared_bytes - kFixedSharedBytes;
  const int64_t column_bytes = (plan.gram ? width : plan.slots) * width * real_bytes;
  plan.column_stride = plan.gram && n_pools(p) == 1 ? 0 : column_bytes;
  plan.columns_offset = plan.shared_state ? 0 : p.batch * plan.state_bytes;
  plan.workspace_bytes =
      plan.columns_offset + (plan.column_stride ? p.batch : int64_t(1)) * column_bytes;
  return plan;
}

cudaError_t launch_frank_wolfe(const FwProblem& problem, const FwPlan& plan, void* workspace,
                               const FwOutputs& outputs, cudaStream_t stream) {
  if (problem.batch == 0) return cudaSuccess;
  if (plan.gram) {
    PoolView pool = problem.pool;
    if (n_pools(problem) == 1) pool.sizes = nullptr;  // each query reads the corner it sees
    void* gram = static_cast<unsigned char*>(workspace) + plan.columns_offset;
    const cudaError_t status = launch_gram(pool, n_pools(problem), gram, stream);
    if (status != cudaSuccess) return status;
  }
  return problem.pool.storage == Storage::kFloat64
             ? launch_solve<double>(problem, plan, workspace, outputs, stream)
             : launch_solve<float>(problem, plan, workspace, outputs, stream);
}

}  // namespace hullft
