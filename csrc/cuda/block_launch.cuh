// How the solvers that give a query a block are launched. A batch whose workspace would be too
// large is solved in parts, one after the other on the stream.
#pragma once

#include <algorithm>

#include "frank_wolfe.h"
#include "reduce.cuh"

namespace hullft {

// float64 takes twice the registers.
template <typename S>
constexpr int kMaxThreads = kMaxBlockWarps * kWarp * 4 / int(sizeof(S));

inline int threads_for(int width, bool wide) {
  if (width <= 128) return 128;
  return width <= 1024 || wide ? 256 : kMaxThreads<float>;
}

// Fewer where other queries fill the device, since one warp of a block takes the steps. An SM has
// registers for kMaxThreads, and room for so many blocks as their state allows.
inline int solver_threads(int width, bool wide, int64_t batch, int64_t shared_bytes,
                          const LaunchLimits& limits) {
  const int threads_of_sm = wide ? kMaxThreads<double> : kMaxThreads<float>;
  constexpr int64_t kFixedBytes = 2048;  // what else a block takes
  const int most = threads_for(width, wide);
  if (batch <= limits.full_device()) return most;
  const int64_t blocks = std::max<int64_t>(limits.shared_bytes / (shared_bytes + kFixedBytes), 1);
  const int64_t warps = (threads_of_sm / kWarp + blocks - 1) / blocks;
  return int(std::min<int64_t>(warps * kWarp, most));
}

// A block a query, by the kernel whose state lies where the plan says. In rounds, it follows the
// launch that computes columns; the blocks of the last one go on to the end. The limit belongs to
// the kernel, on the whole device: were it each launch's own size, a thread could lower it between
// the limit and the launch of another.
template <typename Problem, typename Plan, typename Outputs>
cudaError_t launch_solver(void (*in_shared)(Problem, Plan, unsigned char*, Outputs),
                          void (*in_global)(Problem, Plan, unsigned char*, Outputs),
                          const Problem& problem, Plan plan, void* workspace,
                          const Outputs& outputs, cudaStream_t stream) {
  cudaError_t status = cudaSuccess;
  if (plan.shared_state)
    status = cudaFuncSetAttribute(in_shared, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  int(plan.shared_limit));
  const auto kernel = plan.shared_state ? in_shared : in_global;
  do {
    if (status == cudaSuccess && plan.rounds > 0)
      status = launch_columns(problem.pool, problem.query, problem.batch, plan, workspace, stream);
    if (status != cudaSuccess) return status;
    HULLFT_LAUNCH(kernel, dim3(unsigned(problem.batch)), dim3(unsigned(plan.threads)),
                  plan.shared_state ? size_t(plan.state_bytes) : 0, stream, problem, plan,
                  static_cast<unsigned char*>(workspace), outputs);
    status = cudaGetLastError();
  } while (++plan.round < plan.rounds);
  return status;
}

// As even as can be, of one query at least. `all_bytes`: of what all queries share.
inline int64_t queries_of_part(int64_t batch, int64_t query_bytes, int64_t all_bytes,
                               int64_t limit) {
  if (batch == 0 || query_bytes == 0) return batch;
  const int64_t fit = std::max<int64_t>((limit - all_bytes) / query_bytes, 1);
  const int64_t parts = (batch + fit - 1) / fit;
  return (batch + parts - 1) / parts;
}

// Each of these is the rest of a batch, from query `first` on.
inline PoolView rest_of(PoolView pool, int64_t first) {
  pool.base =
      static_cast<const char*>(pool.base) + first * pool.batch_stride * bytes_of(pool.storage);
  if (pool.candidates) pool.candidates += first * pool.candidates_stride;
  if (pool.sizes) pool.sizes += first;
  return pool;
}

inline QueryView rest_of(const QueryView& query, int64_t first, Storage storage) {
  return {static_cast<const char*>(query.base) + first * query.stride * bytes_of(storage),
          query.stride};
}

// At most `queries` of a FwProblem's or a SiftProblem's batch, from query `first` on.
template <typename Problem>
Problem part_of(const Problem& problem, int64_t first, int64_t queries) {
  Problem part = problem;
  part.pool = rest_of(problem.pool, first);
  part.query = rest_of(problem.query, first, problem.pool.storage);
  part.batch = std::min(queries, problem.batch - first);
  return part;
}

inline FwOutputs rest_of(const FwOutputs& out, int64_t first, int n_select, int64_t real_bytes) {
  const auto after = [&](void* p, int64_t values) {
    return static_cast<char*>(p) + values * real_bytes;
  };
  const int64_t rows = first * n_select;
  const bool dense = !out.indices;
  return {dense ? nullptr : out.indices + rows,
          dense ? nullptr : out.counts + rows,
          out.support_size + first,
          out.num_iter + first,
          after(out.weights, rows),
          after(out.residual, first),
          after(out.gap, first)};
}

// launch(part, out, is_first) for every part.
template <typename Problem, typename Outputs, typename Launch>
cudaError_t launch_parts(const Problem& problem, const Outputs& outputs, int64_t queries,
                         const Launch& launch) {
  const int64_t real_bytes = real_bytes_of(problem.pool.storage);
  cudaError_t status = cudaSuccess;
  for (int64_t first = 0; first < problem.batch && status == cudaSuccess; first += queries)
    status = launch(part_of(problem, first, queries),
                    rest_of(outputs, first, problem.n_select, real_bytes), first == 0);
  return status;
}

}  // namespace hullft
