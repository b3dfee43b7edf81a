// Five launches: the products of all rows with the query over the whole device, one block a query
// for the nearest and their residual, the products with that, and one block a query for the gap.
#include "correlate.h"
#include "knn.h"
#include "rows.cuh"
#include "selection_outputs.cuh"

namespace hullft {
namespace {

constexpr int kThreads = 256;

// The queries' sizes, or 0 where a pool is too small, or its products are not finite.
template <typename S>
__device__ __forceinline__ int solvable_size(const FwProblem& p, int64_t query, const S* products,
                                             const BlockThread& me) {
  const int n = checked_size(p.pool, query, me);
  bool bad = n < p.n_select;
  for (int k = me.thread; k < n; k += me.n_threads) bad = bad || !finite(products[k]);
  return __syncthreads_or(bad) ? 0 : n;
}

// Round by round the best of what comes after the last pick: no marks, no sort.
template <typename S>
__device__ __forceinline__ void pick_nearest(int n, int n_select, const S* products, int64_t* picks,
                                             BlockScratch& scratch, const BlockThread& me) {
  Best<double> last{INFINITY, -1};
  for (int round = 0; round < n_select; ++round) {
    Best<double> mine = no_best<double>();
    for (int k = me.thread; k < n; k += me.n_threads) {
      const double value = double(products[k]);
      const bool later = value < last.value || (value == last.value && k > last.index);
      if (later) see(mine, value, k);
    }
    last = block_best(mine, scratch, me);
    if (me.thread == 0) picks[round] = last.index;
    __syncthreads();
  }
}

template <typename S>
__global__ void __launch_bounds__(kThreads, 2)
    knn_kernel(FwProblem p, const S* products, S* residuals, FwOutputs out) {
  __shared__ BlockScratch scratch;
  const BlockThread me;
  const int64_t query = blockIdx.x, first = query * p.n_select;
  const S* b = products + query * p.pool.width;
  if (sees_nothing(p.pool, query)) {
    write_nothing<S>(p.pool, p.query, query, 1, p.n_select, out, scratch, me);
    return;
  }
  const int n = solvable_size(p, query, b, me);
  if (n == 0) return write_failure<S>(query, p.n_select, out, me);
  int64_t* picks = out.indices + first;
  pick_nearest(n, p.n_select, b, picks, scratch, me);
  const S weight = S(1) / S(p.n_select);
  double squared = 0;
  with_rows<S>(p.pool, query, n, [&](const auto& rows) {
    const auto* q = query_at(rows, p.query, query);
    for (int64_t i = me.thread; i < rows.d; i += me.n_threads) {
      S sum = 0;
      for (int j = 0; j < p.n_select; ++j) sum += widen_to<S>(rows[int(picks[j])][i]);
      const S r = widen_to<S>(q[i]) - sum * weight;
      residuals[query * rows.d + i] = r;
      squared += double(r * r);
    }
  });
  const double total = block_sum(squared, scratch, me);
  for (int i = me.thread; i < p.n_select; i += me.n_threads) {
    out.counts[first + i] = 1;
    static_cast<S*>(out.weights)[first + i] = weight;
  }
  if (me.thread == 0) write_scalars<S>(query, p.n_select, S(sqrt(total)), S(0), 0, out);
}

// The gap from the products with the residual; a query that failed before is left as it is, and one
// without candidates.
template <typename S>
__global__ void __launch_bounds__(kThreads, 2)
    knn_gap_kernel(FwProblem p, const S* products, FwOutputs out) {
  __shared__ BlockScratch scratch;
  const BlockThread me;
  const int64_t query = blockIdx.x;
  if (out.num_iter[query] < 0 || sees_nothing(p.pool, query)) return;
  const S* c = products + query * p.pool.width;
  // The norm of finite values may overflow. Read before the barrier, after which it may be written.
  const bool known = finite(static_cast<const S*>(out.residual)[query]);
  const int n = solvable_size(p, query, c, me);
  if (n == 0 || !known) return write_failure<S>(query, p.n_select, out, me);
  Best<double> mine = no_best<double>();
  for (int k = me.thread; k < n; k += me.n_threads) see(mine, double(c[k]), k);
  double sum = 0;
  for (int i = me.thread; i < p.n_select; i += me.n_threads)
    sum += double(c[out.indices[query * p.n_select + i]]);
  const double largest = block_best(mine, scratch, me).value;
  const double mean = block_sum(sum, scratch, me) / double(p.n_select);
  if (me.thread == 0) write_gap<S>(query, S(largest - mean), out);
}

template <typename S>
cudaError_t launch(const FwProblem& p, void* workspace, const FwOutputs& out, cudaStream_t stream) {
  S* vectors = static_cast<S*>(workspace);
  S* products = vectors + p.batch * p.pool.d;
  cudaError_t status =
      launch_residual(p.query, nullptr, p.batch, p.pool.d, p.pool.storage, vectors, stream);
  if (status == cudaSuccess) status = launch_correlate(p.pool, p.batch, vectors, products, stream);
  if (status != cudaSuccess) return status;
  HULLFT_LAUNCH(knn_kernel<S>, dim3(unsigned(p.batch)), dim3(kThreads), 0, stream, p, products,
                vectors, out);
  status = cudaGetLastError();
  if (status == cudaSuccess) status = launch_correlate(p.pool, p.batch, vectors, products, stream);
  if (status != cudaSuccess) return status;
  HULLFT_LAUNCH(knn_gap_kernel<S>, dim3(unsigned(p.batch)), dim3(kThreads), 0, stream, p, products,
                out);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_knn(const FwProblem& problem, void* workspace, const FwOutputs& outputs,
                       cudaStream_t stream) {
  if (problem.batch == 0) return cudaSuccess;
  const bool wide = problem.pool.storage == Storage::kFloat64;
  return (wide ? launch<double> : launch<float>)(problem, workspace, outputs, stream);
}

}  // namespace hullft
