// The Gram matrix of the support, then one block a query.
#include "block_integerize.cuh"
#include "gram.h"
#include "integerize.h"
#include "rows.cuh"

namespace hullft {
namespace {

constexpr int kThreads = 256;

int64_t aligned(int64_t bytes) { return (bytes + 15) / 16 * 16; }

int64_t gram_bytes(const IntegerizeProblem& p) {
  const int64_t m = p.support.width;
  return aligned(p.batch * m * m * real_bytes_of(p.support.storage));
}

// Of one query: the arrays of CountArrays and the products with the query.
int64_t state_bytes(const IntegerizeProblem& p) {
  return aligned(int64_t(p.support.width) *
                 (int64_t(kCountBytes) + real_bytes_of(p.support.storage)));
}

template <typename S>
__device__ __forceinline__ CountArrays carve(unsigned char* memory, int m, S** products) {
  CountArrays x;
  x.v = reinterpret_cast<double*>(memory);
  x.b = x.v + m;
  x.diagonal = x.b + m;
  *products = reinterpret_cast<S*>(x.diagonal + m);
  x.counts = reinterpret_cast<int*>(*products + m);
  x.held = x.counts + m;
  return x;
}

template <typename S>
__global__ void __launch_bounds__(kThreads, 2)
    integerize_kernel(IntegerizeProblem p, const S* grams, unsigned char* states, int64_t bytes,
                      int64_t* counts) {
  __shared__ BlockScratch scratch;
  const BlockThread me;
  const int64_t query = blockIdx.x;
  const int width = p.support.width;
  S* products;
  const CountArrays x = carve<S>(states + query * bytes, width, &products);
  const S* gram = grams + query * width * width;
  const auto weight = [&](int i) {
    return p.wide_weights ? static_cast<const double*>(p.weights)[query * width + i]
                          : double(static_cast<const float*>(p.weights)[query * width + i]);
  };
  const int m = checked_size(p.support, query, me);
  bool bad = m == 0;
  with_rows<S>(p.support, query, m, [&](const auto& rows) {
    multiply_rows(rows, 0, rows.n, query_at(rows, p.query, query), products, me);
  });
  __syncthreads();
  double positive = 0;
  for (int i = me.thread; i < m; i += me.n_threads) {
    x.b[i] = double(products[i]);
    bad = bad || !finite(x.b[i]) || !finite(weight(i));
    positive += weight(i) > 0 ? weight(i) : 0.0;
  }
  const double total = block_sum(positive, scratch, me);
  bad = bad || !finite(total);
  for (int64_t e = me.thread; e < int64_t(m) * m; e += me.n_threads)
    bad = bad || !finite(gram[e / m * width + e % m]);
  const bool failed = __syncthreads_or(bad);
  if (!failed) {
    const auto element = [&](int i, int j) { return double(gram[int64_t(i) * width + j]); };
    BlockIntegerizer integerizer(element, x, m, p.n_select, scratch, me);
    integerizer.run(weight, p.swap_passes);
  }
  __syncthreads();
  for (int i = me.thread; i < width; i += me.n_threads)
    counts[query * width + i] = failed ? -1 : i < m ? x.counts[i] : 0;
}

template <typename S>
cudaError_t launch(const IntegerizeProblem& p, void* workspace, int64_t* counts,
                   cudaStream_t stream) {
  unsigned char* memory = static_cast<unsigned char*>(workspace);
  const cudaError_t status = launch_gram(p.support, p.batch, memory, stream);
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
  return problem.support.storage == Storage::kFloat64
             ? launch<double>(problem, workspace, counts, stream)
             : launch<float>(problem, workspace, counts, stream);
}

}  // namespace hullft
