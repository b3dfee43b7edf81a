// Sums over the shares of long rows: see csrc/cuda/README.md.
#include "gram.h"
#include "gram_tile.cuh"
#include "rows.cuh"

namespace hullft {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;

// A lane adds up one product, and a warp every eighth share.
template <typename S>
__global__ void __launch_bounds__(kThreads, 4) gram_sum_kernel(GramProblem problem) {
  __shared__ double sums[kWarps][kWarp];
  const BlockThread me;
  const int width = problem.pool.width;
  const int64_t products = int64_t(width + problem.queries) * width;
  const int64_t blocks = (products + kWarp - 1) / kWarp, b = int64_t(blockIdx.x) / blocks;
  const int64_t at = int64_t(blockIdx.x) % blocks * kWarp + me.lane;
  const int i = int(at / width), j = int(at % width);
  const int64_t n = problem.pool.sizes ? problem.pool.sizes[b] : int64_t(width);
  const bool is_product = at < products && j <= i && j < n && (i < n || i >= width);
  double sum = 0;
  if (is_product) {
    const double* share =
        static_cast<const double*>(problem.partial) + b * problem.shares.count * products + at;
#pragma unroll 4
    for (int s = me.warp; s < problem.shares.count; s += kWarps) sum += share[s * products];
  }
  sums[me.warp][me.lane] = sum;
  __syncthreads();
  if (me.warp != 0 || !is_product) return;
  double total = 0;
  for (int w = 0; w < kWarps; ++w) total += sums[w][me.lane];
  GramOutputs<S>(problem, b).put(i, j, S(total));
}

// The squares of some columns of q - X^T w, `kCount` that lie side by side.
template <int kCount, typename S, typename T>
__device__ __forceinline__ S squares_at(const Rows<T>& rows, const T* q, const int* support,
                                        const S* weights, int m, int64_t at) {
  S left[kCount];
  load_words<kCount>(q + at, left);
#pragma unroll 4
  for (int i = 0; i < m; ++i) {
    S row[kCount];
    load_words<kCount>(rows[support[i]] + at, row);
#pragma unroll
    for (int e = 0; e < kCount; ++e) left[e] -= weights[i] * row[e];
  }
  S squares = 0;
#pragma unroll
  for (int e = 0; e < kCount; ++e) squares += left[e] * left[e];
  return squares;
}

template <typename S>
__global__ void __launch_bounds__(kThreads, 2) distance_kernel(DistanceProblem problem) {
  __shared__ BlockScratch scratch;
  const BlockThread me;
  const int64_t query = int64_t(blockIdx.x) / problem.shares.count;
  const int64_t share = int64_t(blockIdx.x) % problem.shares.count;
  if (problem.asked && !(problem.asked[query] < 0)) return;
  const int m = problem.support ? int(problem.sizes[query]) : 0;
  const int* listed = problem.support + query * problem.slots;
  const S* weights = static_cast<const S*>(problem.weights) + query * problem.slots;
  const int64_t first = share * problem.shares.columns;
  double total = 0;
  with_rows<S>(problem.pool, query, problem.pool.width, [&](const auto& rows) {
    const auto* q = query_at(rows, problem.query, query);
    constexpr int kStep = kVector<std::remove_cv_t<std::remove_pointer_t<decltype(q)> > >;
    const int64_t last =
        first + problem.shares.columns < rows.d ? first + problem.shares.columns : rows.d;
    const int64_t whole = rows.vectors ? last / kStep * kStep : first;
    for (int64_t i = first + me.thread * kStep; i < whole; i += kThreads * kStep)
      total += double(squares_at<kStep, S>(rows, q, listed, weights, m, i));
    for (int64_t i = whole + me.thread; i < last; i += kThreads) {
      S left = widen_to<S>(q[i]);
      for (int r = 0; r < m; ++r) left -= weights[r] * widen_to<S>(rows[listed[r]][i]);
      total += double(left) * double(left);
    }
  });
  total = block_sum(total, scratch, me);
  if (me.thread == 0) problem.partial[blockIdx.x] = total;
}

template <typename S>
__global__ void __launch_bounds__(kThreads, 4) distance_sum_kernel(DistanceProblem problem) {
  __shared__ BlockScratch scratch;
  const BlockThread me;
  const int64_t query = blockIdx.x;
  if (problem.asked && !(problem.asked[query] < 0)) return;
  const double* partial = problem.partial + query * problem.shares.count;
  double total = 0;
  for (int s = me.thread; s < problem.shares.count; s += kThreads) total += partial[s];
  total = block_sum(total, scratch, me);
  if (me.thread != 0) return;
  if (problem.support)
    static_cast<S*>(problem.out)[query] = S(sqrt(total));
  else
    static_cast<double*>(problem.out)[query] = total;
}

template <typename S>
cudaError_t launch(const DistanceProblem& problem, cudaStream_t stream) {
  HULLFT_LAUNCH(distance_kernel<S>, dim3(unsigned(problem.batch * problem.shares.count)),
                dim3(kThreads), 0, stream, problem);
  const cudaError_t status = cudaGetLastError();
  if (status != cudaSuccess) return status;
  HULLFT_LAUNCH(distance_sum_kernel<S>, dim3(unsigned(problem.batch)), dim3(kThreads), 0, stream,
                problem);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_gram_sum(const GramProblem& problem, cudaStream_t stream) {
  const int64_t width = problem.pool.width, products = (width + problem.queries) * width;
  const auto kernel = problem.wide ? gram_sum_kernel<double> : gram_sum_kernel<float>;
  const int64_t blocks = (products + kWarp - 1) / kWarp * problem.pools;
  HULLFT_LAUNCH(kernel, dim3(unsigned(blocks)), dim3(kThreads), 0, stream, problem);
  return cudaGetLastError();
}

cudaError_t launch_distances(const DistanceProblem& problem, cudaStream_t stream) {
  return problem.pool.storage == Storage::kFloat64 ? launch<double>(problem, stream)
                                                   : launch<float>(problem, stream);
}

}  // namespace hullft
