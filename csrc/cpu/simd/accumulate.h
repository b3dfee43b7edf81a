// cache <- beta * cache + alpha * grad.
#pragma once

#include "real.h"
#include "replay_kernels.h"

namespace hullft {
namespace {

// n is a multiple of the vector length.
template <typename T, typename G, bool kReadCache>
void accumulate_vectors(T* cache, const G* grad, int64_t n, double alpha, double beta) {
  using R = Arithmetic<T, G>;
  const R a = R(alpha), b = R(beta);
  for (int64_t i = 0; i < n; i += kLanes<R>) {
    Vector<R> sum = a * load<R>(grad + i);
    if constexpr (kReadCache) sum += b * load<R>(cache + i);
    store(cache + i, sum);
  }
}

template <typename T, typename G, bool kReadCache>
void accumulate_all(T* cache, const G* grad, int64_t n, double alpha, double beta) {
  constexpr int64_t lanes = kLanes<Arithmetic<T, G>>;
  const int64_t whole = n / lanes * lanes, rest = n - whole;
  accumulate_vectors<T, G, kReadCache>(cache, grad, whole, alpha, beta);
  if (rest == 0) return;
  T c[lanes] = {};
  G g[lanes] = {};
  std::memcpy(c, cache + whole, size_t(rest) * sizeof(T));
  std::memcpy(g, grad + whole, size_t(rest) * sizeof(G));
  accumulate_vectors<T, G, kReadCache>(c, g, lanes, alpha, beta);
  std::memcpy(cache + whole, c, size_t(rest) * sizeof(T));
}

// With beta = 0 the cache is not read: it may hold anything, NaN too.
template <typename T, typename G>
void accumulate_kernel(T* cache, const G* grad, int64_t n, double alpha, double beta) {
  if (beta == 0)
    accumulate_all<T, G, false>(cache, grad, n, alpha, beta);
  else
    accumulate_all<T, G, true>(cache, grad, n, alpha, beta);
}

}  // namespace
}  // namespace hullft
