// The Frank-Wolfe state update fused with the next linear minimisation: b, u and the columns are
// read once.
#pragma once

#include <limits>

#include "real.h"
#include "screening_kernels.h"
#include "step_kernels.h"

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

// scale * u + toward * s, fused explicitly: the same bits wherever it is computed.
template <typename R, typename V>
inline V stepped(V u, R scale, R toward, V s) {
  return multiply_add(broadcast(toward), s, rounded(u * scale));
}

template <bool kMoves>
inline ArgMax step_argmax_columns(const double* b, double* u, int64_t n, double scale,
                                  double toward, const double* column) {
  RunningMax chains[kChains];
  VecL at;
  for (int i = 0; i < kDoubles; ++i) at[i] = i;
  const auto visit = [&](int64_t k, RunningMax& chain) {
    VecD u_k = load_doubles(u + k);
    if constexpr (kMoves) {
      u_k = stepped(u_k, scale, toward, load_doubles(column + k));
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
                          const double* column) {
  return column ? step_argmax_columns<true>(b, u, n, scale, toward, column)
                : step_argmax_columns<false>(b, u, n, scale, toward, column);
}

template <bool kMoves, typename R>
inline R step_max_columns(const R* b, R* u, int64_t n, R scale, R toward, const R* column) {
  constexpr int64_t kStride = kLanes<R>;
  Vector<R> even = broadcast(-std::numeric_limits<R>::infinity()), odd = even;
  const auto visit = [&](int64_t k, Vector<R>& highest) {
    Vector<R> u_k = load<R>(u + k);
    if constexpr (kMoves) {
      u_k = stepped(u_k, scale, toward, load<R>(column + k));
      store(u + k, u_k);
    }
    const Vector<R> c = load<R>(b + k) - u_k;
    highest = c > highest ? c : highest;
  };
  int64_t k = 0;
  for (; k + 2 * kStride <= n; k += 2 * kStride) {
    visit(k, even);
    visit(k + kStride, odd);
  }
  if (k < n) visit(k, even);
  return max_lanes(even > odd ? even : odd);
}

template <typename R>
R step_max_kernel(const R* b, R* u, int64_t n, double scale, double toward, const R* column) {
  return column ? step_max_columns<true>(b, u, n, R(scale), R(toward), column)
                : step_max_columns<false>(b, u, n, R(scale), R(toward), column);
}

TiedMax step_tied_max_kernel(const double* b, double* u, int64_t n, double scale, double toward,
                             const double* column) {
  const double highest = step_max_kernel<double>(b, u, n, scale, toward, column);
  constexpr int64_t kBlock = 64;
  TiedMax max{highest, -1, false};
  for (int64_t first = 0; first < n; first += kBlock) {
    const int64_t end = first + kBlock < n ? first + kBlock : n;
    uint64_t equal = 0;  // bit k: candidate first + k has the maximum
    for (int64_t k = first; k < end; k += kDoubles)
      equal |= equal_lanes(load<double>(b + k) - load<double>(u + k), broadcast(highest))
               << (k - first);
    if (!equal) continue;
    max.tied = max.index >= 0 || (equal & (equal - 1));
    if (max.index < 0) max.index = first + __builtin_ctzll(equal);
    if (max.tied) break;
  }
  return max;
}

double follow_moves_kernel(const SupportMove* moves, int64_t n_moves, const double* products) {
  VecD u = {};
  for (int64_t t = 0; t < n_moves; ++t) {
    const SupportMove& move = moves[t];
    if (move.toward > 0) u = stepped(u, move.scale, move.toward, broadcast(products[move.s]));
  }
  return u[0];
}

}  // namespace
}  // namespace hullft
