// The Gram matrix of the support, then one block a query.
#include "gram.h"
#include "integerize.h"
#include "rows.cuh"
#include "warp_integerize.cuh"

namespace hullft {
namespace {

constexpr int kThreads = 256;

int64_t gram_bytes(const IntegerizeProblem& p) {
  const int64_t m = p.support.width;
  return aligned_bytes(p.batch * m * m * real_bytes_of(p.support.storage));
}

// Bytes of one query: its CountArrays, and products.
int64_t state_bytes(const IntegerizeProblem& p) {
  return aligned_bytes(int64_t(p.support.width) * (kCountBytes + real_bytes_of(p.support.storage)));
}

__device__ __forceinline__ CountArrays arrays_of(unsigned char* memory, int m) {
  double* gain = reinterpret_cast<double*>(memory);
  int* counts = reinterpret_cast<int*>(gain + m);
  return {gain, counts, counts + m};
}

// Whether a weight, a product or an element of the Gram matrix is not finite.
template <typename S, typename Rows, typename Weight>
__device__ __forceinline__ bool has_bad_value(const Rows& rows, const S* products, int m,
                                              const Weight& weight, BlockScratch& scratch,
                                              const BlockThread& me) {
  bool bad = m == 0;
  double positive = 0;
  for (int i = me.thread; i < m; i += me.n_threads) {
    bad = bad || !finite(products[i]) || !finite(weight(i));
    positive += weight(i) > 0 ? weight(i) : 0.0;
  }
  const double total = block_sum(positive, scratch, me);
  bad = bad || !finite(total);
  for (int i = me.warp; i < m; i += me.n_warps)
    for (int j = me.lane; j < m; j += kWarp) bad = bad || !finite(rows.row(i)[j]);
  return __syncthreads_or(bad);
}

// Gram matrix of a query's support in global memory.
template <typename S>
struct GramRows {
  static constexpr bool kAtOnce = false;
  const S* gram;
  int64_t width;

  __device__ __forceinline__ const S* row(int i) const { return gram + i * width; }
  __device__ __forceinline__ int at(int j) const { return j; }
};

template <typename S>
__global__ void __launch_bounds__(kThreads, 2)
    integerize_kernel(IntegerizeProblem p, const S* grams, unsigned char* states, int64_t bytes,
                      int64_t* counts) {
  __shared__ BlockScratch scratch;
  __shared__ S small_gram[kSmallGram<S>];
  const BlockThread me;
  const int64_t query = blockIdx.x;
  const int width = p.support.width;
  unsigned char* memory = states + query * bytes;
  S* products = reinterpret_cast<S*>(memory + width * kCountBytes);
  const GramRows<S> rows{grams + query * width * width, width};
  const auto weight = [&](int i) {
    return p.wide_weights ? static_cast<const double*>(p.weights)[query * width + i]
                          : double(static_cast<const float*>(p.weights)[query * width + i]);
  };
  const int m = checked_size(p.support, query, me);
  with_rows<S>(p.support, query, m, [&](const auto& pool) {
    multiply_rows(pool, 0, pool.n, query_at(pool, p.query, query), products, me);
  });
  __syncthreads();
  const CountArrays x = arrays_of(memory, m);
  const bool failed = has_bad_value(rows, products, m, weight, scratch, me);
  if (!failed) {
    for (int i = me.thread; i < m; i += me.n_threads) x.gain[i] = double(products[i]);
    count_units(rows, weight, x, m, p.n_select, p.swap_passes, small_gram, kSmallGram<S>, me);
  }
  for (int i = me.thread; i < width; i += me.n_threads)
    counts[query * width + i] = failed ? -1 : i < m ? x.counts[i] : 0;
}

template <typename S>
cudaError_t launch(const IntegerizeProblem& p, void* workspace, int64_t* counts,
                   cudaStream_t stream) {
  unsigned char* memory = static_cast<unsigned char*>(workspace);
  GramProblem grams{};
  grams.pool = p.support, grams.pools = p.batch, grams.gram = memory;
  grams.wide = grams.wide_products = p.support.storage == Storage::kFloat64;
  const cudaError_t status = launch_gram(grams, p.sms, stream);
  if (status != cudaSuccess) return status;
  HULLFT_LAUNCH(integerize_kernel<S>, dim3(unsigned(p.batch)), dim3(kThreads), 0, stream, p,
                reinterpret_cast<const S*>(memory), memory + gram_bytes(p), state_bytes(p), counts);
  return cudaGetLastError();
}

}  // namespace

int64_t integerize_workspace_bytes(const IntegerizeProblem& p) {
  return gram_bytes(p) + p.batch * state_bytes(p);
}

cudaError_t launch_integerize(const IntegerizeProblem& problem, void* workspace, int64_t* counts,
                              cudaStream_t stream) {
  if (problem.batch == 0) return cudaSuccess;
  const bool wide = problem.support.storage == Storage::kFloat64;
  return (wide ? launch<double> : launch<float>)(problem, workspace, counts, stream);
}

}  // namespace hullft
