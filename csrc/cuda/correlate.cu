#include "correlate.h"
#include "frank_wolfe.h"
#include "fw_state.cuh"
#include "rows.cuh"

namespace hullft {
namespace {

constexpr int kThreads = 256;
constexpr int kRowsPerBlock = kThreads / kWarp * kTileRows;

template <typename T>
__global__ void __launch_bounds__(kThreads, 2)
    residual_kernel(QueryView query, QueryView current, int64_t d, void* to) {
  using S = Arithmetic<T>;
  S* const vectors = static_cast<S*>(to);
  const int64_t b = blockIdx.x;
  const T* q = static_cast<const T*>(query.base) + b * query.stride;
  const T* x = static_cast<const T*>(current.base) + b * current.stride;
  for (int64_t i = threadIdx.x; i < d; i += kThreads) {
    const S value = widen_to<S>(q[i]);
    vectors[b * d + i] = current.base ? value - widen_to<S>(x[i]) : value;
  }
}

// A block has a share of one query's products. A size or a candidate out of range reads nothing
// that is not there; the kernel after this one reports it.
template <typename S>
__global__ void __launch_bounds__(kThreads, 2)
    correlate_kernel(PoolView pool, int64_t blocks_per_query, const S* vectors, S* products) {
  const BlockThread me;
  const int64_t query = int64_t(blockIdx.x) / blocks_per_query;
  const int64_t first = int64_t(blockIdx.x) % blocks_per_query * kRowsPerBlock;
  const int n = checked_size(pool, query, me);
  const int64_t last = first + kRowsPerBlock < n ? first + kRowsPerBlock : n;
  with_rows<S>(pool, query, n, [&](const auto& rows) {
    multiply_rows(rows, int(first), int(last), vectors + query * pool.d,
                  products + query * pool.width, me);
  });
}

// The same for solves in rounds: the products with the query in the first round, later with the row
// that it picked. R: as with_rows takes it.
template <typename S, typename R = S>
__global__ void __launch_bounds__(kThreads, 2)
    columns_kernel(PoolView pool, QueryView queries, SolverPlan plan, unsigned char* workspace) {
  const BlockThread me;
  const int64_t query = blockIdx.y;
  const int first = int(blockIdx.x) * kRowsPerBlock;
  unsigned char* state = workspace + query * plan.state_bytes;
  auto& pause = *pause_of<FwPause<S>>(plan, state);
  const bool starts = plan.round == 0;
  if (!starts && pause.round != plan.round - 1) return;  // the solve has ended
  if (starts && first == 0 && me.thread == 0) pause.round = -1;
  const int n = starts ? checked_size(pool, query, me) : pause.n;
  const int last = n - first > kRowsPerBlock ? first + kRowsPerBlock : n;
  S* columns = reinterpret_cast<S*>(workspace + plan.columns_offset + query * plan.column_stride);
  S* out = starts ? carve_state<S>(state, pool.width, plan.slots).b
                  : columns + int64_t(pause.picked_entry) * pool.width;
  with_rows<R>(pool, query, n, [&](const auto& rows) {
    const auto* x = starts ? query_at(rows, queries, query) : rows[pause.picked];
    multiply_rows(rows, first, last, x, out, me);
  });
}

template <typename S>
cudaError_t correlate(const PoolView& pool, int64_t batch, const void* vectors, void* products,
                      cudaStream_t stream) {
  // No device has memory for the products of 2^31 blocks.
  const int64_t blocks = (int64_t(pool.width) + kRowsPerBlock - 1) / kRowsPerBlock;
  PoolView view = pool;
  view.vectors = aligned16(pool.base, pool.row_stride, pool.storage) &&
                 aligned16(pool.base, pool.batch_stride, pool.storage) &&
                 pool.d * int64_t(sizeof(S)) % 16 == 0;
  HULLFT_LAUNCH(correlate_kernel<S>, dim3(unsigned(blocks * batch)), dim3(kThreads), 0, stream,
                view, blocks, static_cast<const S*>(vectors), static_cast<S*>(products));
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_residual(const QueryView& query, const QueryView* current, int64_t batch,
                            int64_t d, Storage storage, void* vectors, cudaStream_t stream) {
  if (batch == 0) return cudaSuccess;
  const auto kernel = for_storage(storage, [](auto x) { return residual_kernel<decltype(x)>; });
  HULLFT_LAUNCH(kernel, dim3(unsigned(batch)), dim3(kThreads), 0, stream, query,
                current ? *current : QueryView{nullptr, 0}, d, vectors);
  return cudaGetLastError();
}

cudaError_t launch_correlate(const PoolView& pool, int64_t batch, const void* vectors,
                             void* products, cudaStream_t stream) {
  if (batch == 0) return cudaSuccess;
  const bool wide = pool.storage == Storage::kFloat64;
  return (wide ? correlate<double> : correlate<float>)(pool, batch, vectors, products, stream);
}

cudaError_t launch_columns(const PoolView& pool, const QueryView& query, int64_t batch,
                           const SolverPlan& plan, void* workspace, cudaStream_t stream) {
  const dim3 blocks(unsigned(pool.width + kRowsPerBlock - 1) / kRowsPerBlock, unsigned(batch));
  const auto kernel = pool.storage == Storage::kFloat64 ? columns_kernel<double>
                      : plan.wide                       ? columns_kernel<double, float>
                                                        : columns_kernel<float>;
  HULLFT_LAUNCH(kernel, blocks, dim3(kThreads), 0, stream, pool, query, plan,
                static_cast<unsigned char*>(workspace));
  return cudaGetLastError();
}

}  // namespace hullft
