// The Frank-Wolfe state update fused with the next linear minimisation: b, u and the columns are
// read once.
#pragma once

#include "kernels.h"
#include "real.h"

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

// scale * u + toward * s - away * a, fused explicitly: the same bits wherever it is computed.
template <bool kToward, bool kAway>
inline VecD stepped(VecD u, double scale, double toward, VecD s, double away, VecD a) {
  u = rounded(u * scale);
  if constexpr (kToward) u = multiply_add(broadcast(toward), s, u);
  if constexpr (kAway) u = multiply_add(broadcast(-away), a, u);
  return u;
}

template <bool kToward, bool kAway, typename C>
inline VecD stepped(const double* u, int64_t k, double scale, double toward, const C* column_s,
                    double away, const C* column_a) {
  VecD s = {}, a = {};
  if constexpr (kToward) s = load_doubles(column_s + k);
  if constexpr (kAway) a = load_doubles(column_a + k);
  return stepped<kToward, kAway>(load_doubles(u + k), scale, toward, s, away, a);
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
      u_k = stepped<kToward, kAway>(u, k, scale, toward, column_s, away, column_a);
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

template <bool kToward, bool kAway, typename C>
inline double step_max_columns(const double* b, double* u, int64_t n, double scale, double toward,
                               const C* column_s, double away, const C* column_a) {
  static_assert(kPadding % (2 * kDoubles) == 0);
  VecD even = broadcast(-__builtin_inf()), odd = even;
  const auto visit = [&](int64_t k, VecD& highest) {
    const VecD u_k = stepped<kToward, kAway>(u, k, scale, toward, column_s, away, column_a);
    store_doubles(u + k, u_k);
    const VecD c = load_doubles(b + k) - u_k;
    highest = c > highest ? c : highest;
  };
  for (int64_t k = 0; k < n; k += 2 * kDoubles) {
    visit(k, even);
    visit(k + kDoubles, odd);
  }
  even = even > odd ? even : odd;
  double highest = even[0];
  for (int i = 1; i < kDoubles; ++i) highest = even[i] > highest ? even[i] : highest;
  return highest;
}

template <typename C>
double step_max_kernel(const double* b, double* u, int64_t n, double scale, double toward,
                       const C* column_s, double away, const C* column_a) {
  if (column_s && column_a)
    return step_max_columns<true, true>(b, u, n, scale, toward, column_s, away, column_a);
  if (column_s)
    return step_max_columns<true, false>(b, u, n, scale, toward, column_s, away, column_a);
  if (column_a)
    return step_max_columns<false, true>(b, u, n, scale, toward, column_s, away, column_a);
  return step_max_columns<false, false>(b, u, n, scale, toward, column_s, away, column_a);
}

double follow_moves_kernel(const SupportMove* moves, int64_t n_moves, const double* products) {
  VecD u = {};
  for (int64_t t = 0; t < n_moves; ++t) {
    const SupportMove& move = moves[t];
    const VecD s = broadcast(products[move.s]), a = broadcast(products[move.a]);
    if (move.toward > 0 && move.away > 0)
      u = stepped<true, true>(u, move.scale, move.toward, s, move.away, a);
    else if (move.toward > 0)
      u = stepped<true, false>(u, move.scale, move.toward, s, move.away, a);
    else if (move.away > 0)
      u = stepped<false, true>(u, move.scale, move.toward, s, move.away, a);
  }
  return u[0];
}

}  // namespace
}  // namespace hullft
