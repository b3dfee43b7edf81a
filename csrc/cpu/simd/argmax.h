// The Frank-Wolfe state update fused with the next linear minimisation: b, u and the columns are
// read once.
#pragma once

#include "kernels.h"
#include "vec.h"

namespace hullft {
namespace {

constexpr int kChains = 2;  // independent running maxima, to hide the compare-select latency

struct RunningMax {
  VecD value = broadcast(-__builtin_inf());
  VecL index = {};

  inline void see(VecD c, VecL at) {
    const VecL greater = c > value;
    value = greater ? c : value;
    index = greater ? at : index;
  }
};

inline ArgMax reduce(const RunningMax* chains) {
  ArgMax best{-__builtin_inf(), 0};
  bool seen = false;
  for (int j = 0; j < kChains; ++j) {
    for (int i = 0; i < kDoubles; ++i) {
      const double value = chains[j].value[i];
      const int64_t index = chains[j].index[i];
      if (!seen || value > best.value || (value == best.value && index < best.index))
        best = {value, index};
      seen = true;
    }
  }
  return best;
}

template <bool kToward, bool kAway>
inline ArgMax step_argmax_columns(const double* b, double* u, int64_t n, double scale,
                                  double toward, const double* column_s, double away,
                                  const double* column_a) {
  RunningMax chains[kChains];
  VecL at;
  for (int i = 0; i < kDoubles; ++i) at[i] = i;
  const auto visit = [&](int64_t k, RunningMax& chain) {
    VecD u_k = load_doubles(u + k);
    if constexpr (kToward || kAway) {
      u_k = u_k * scale;
      if constexpr (kToward) u_k += toward * load_doubles(column_s + k);
      if constexpr (kAway) u_k -= away * load_doubles(column_a + k);
      store_doubles(u + k, u_k);
    }
    chain.see(load_doubles(b + k) - u_k, at);
    at += kDoubles;
  };
  int64_t k = 0;
  for (; k + kChains * kDoubles <= n; k += kChains * kDoubles)
    for (int j = 0; j < kChains; ++j) visit(k + j * kDoubles, chains[j]);
  for (; k < n; k += kDoubles) visit(k, chains[0]);
  return reduce(chains);
}

ArgMax step_argmax_kernel(const double* b, double* u, int64_t n, double scale, double toward,
                          const double* column_s, double away, const double* column_a) {
  if (column_s && column_a)
    return step_argmax_columns<true, true>(b, u, n, scale, toward, column_s, away, column_a);
  if (column_s)
    return step_argmax_columns<true, false>(b, u, n, scale, toward, column_s, away, column_a);
  if (column_a)
    return step_argmax_columns<false, true>(b, u, n, scale, toward, column_s, away, column_a);
  return step_argmax_columns<false, false>(b, u, n, scale, toward, column_s, away, column_a);
}

}  // namespace
}  // namespace hullft
