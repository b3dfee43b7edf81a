// Three launches: the residual, its products with all rows over the whole device, and one block a
// query for the largest of them and the step.
#include "../core/frank_wolfe.h"
#include "correlate.h"
#include "lmo.h"
#include "rows.cuh"

namespace hullft {
namespace {

constexpr int kThreads = 256;

template <typename S>
__device__ __forceinline__ void write_lmo(int64_t query, int64_t index, S correlation, S gamma,
                                          S gap, const LmoOutputs& out) {
  out.index[query] = index;
  static_cast<S*>(out.correlation)[query] = correlation;
  static_cast<S*>(out.gamma)[query] = gamma;
  static_cast<S*>(out.gap)[query] = gap;
}

template <typename S>
__global__ void __launch_bounds__(kThreads, 4)
    lmo_kernel(LmoProblem problem, const S* residuals, const S* products, LmoOutputs out) {
  __shared__ BlockScratch scratch;
  const BlockThread me;
  const int64_t query = blockIdx.x;
  const int n = checked_size(problem.pool, query, me);
  const S* c = products + query * problem.pool.width;
  Best<double> mine = no_best<double>();
  bool bad = n == 0;
  for (int k = me.thread; k < n; k += me.n_threads) {
    bad = bad || !finite(c[k]);
    see(mine, double(c[k]), k);
  }
  if (__syncthreads_or(bad)) {
    if (me.thread == 0) write_lmo<S>(query, -1, S(NAN), S(NAN), S(NAN), out);
    return;
  }
  const Best<double> best = block_best(mine, scratch, me);
  const S* r = residuals + query * problem.pool.d;
  // <r, x - current>, ||x - current||^2, <r, current>, ||x||^2, ||current||^2
  double slope = 0, squared = 0, of_current = 0, xx = 0, cc = 0;
  with_rows<S>(problem.pool, query, n, [&](const auto& rows) {
    const auto* x = rows[best.index];
    const auto* current = query_at(rows, problem.current, query);
    for (int64_t i = me.thread; i < rows.d; i += me.n_threads) {
      const S row = widen_to<S>(x[i]), at = widen_to<S>(current[i]), direction = row - at;
      slope += double(r[i] * direction);
      squared += double(direction * direction);
      of_current += double(r[i] * at);
      xx += double(row * row), cc += double(at * at);
    }
  });
  const double total_slope = block_sum(slope, scratch, me);
  const double total_squared = block_sum(squared, scratch, me);
  const double total_current = block_sum(of_current, scratch, me);
  const double total_xx = block_sum(xx, scratch, me), total_cc = block_sum(cc, scratch, me);
  if (me.thread != 0) return;
  const S gap = S(best.value - total_current);
  // Products of finite values may overflow.
  if (!finite(S(total_slope)) || !finite(S(total_squared)) || !finite(total_xx + total_cc) ||
      !finite(gap))
    return write_lmo<S>(query, -1, S(NAN), S(NAN), S(NAN), out);
  const double gamma = is_rounding(total_squared, total_xx, total_cc)
                           ? 0.0
                           : line_search(total_slope, total_squared);
  write_lmo<S>(query, best.index, S(best.value), S(gamma), gap, out);
}

template <typename S>
cudaError_t launch(const LmoProblem& p, void* workspace, const LmoOutputs& outputs,
                   cudaStream_t stream) {
  S* residuals = static_cast<S*>(workspace);
  S* products = residuals + p.batch * p.pool.d;
  cudaError_t status =
      launch_residual(p.query, &p.current, p.batch, p.pool.d, p.pool.storage, residuals, stream);
  if (status == cudaSuccess)
    status = launch_correlate(p.pool, p.batch, residuals, products, stream);
  if (status != cudaSuccess) return status;
  HULLFT_LAUNCH(lmo_kernel<S>, dim3(unsigned(p.batch)), dim3(kThreads), 0, stream, p, residuals,
                products, outputs);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_lmo(const LmoProblem& problem, void* workspace, const LmoOutputs& outputs,
                       cudaStream_t stream) {
  if (problem.batch == 0) return cudaSuccess;
  const bool wide = problem.pool.storage == Storage::kFloat64;
  return (wide ? launch<double> : launch<float>)(problem, workspace, outputs, stream);
}

}  // namespace hullft
