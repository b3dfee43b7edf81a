// The Adam sweep: parameter, gradient and moments are read once, all steps taken in registers, and
// parameter and moments written once.
#pragma once

#include <cstdint>
#include <type_traits>

#include "kernels.h"
#include "real.h"

namespace hullft {
namespace {

struct VectorMath {
  template <typename V>
  V root(V v) const {
    return square_root(v);
  }
  template <typename R, typename V>
  V fma(R a, V b, V c) const {
    return multiply_add(broadcast(a), b, c);
  }
  template <typename V>
  V fma(V a, V b, V c) const {
    return multiply_add(a, b, c);
  }
  template <typename R, typename V>
  V product(R a, V b) const {
    return rounded(a * b);
  }
};

// Vectors in flight: square root and division are long operations that follow one another.
constexpr int kAdamVectors = 2;

template <typename T>
constexpr int64_t kAdamBlock = kAdamVectors * kLanes<Arithmetic<T>>;

// Asks for a block to come of the same array, which may have ended by then. Left to themselves,
// memory and arithmetic wait for each other.
template <typename T, typename Element>
inline void prefetch_block(const Element* block) {
  constexpr uintptr_t kBytesAhead = 1024, kLine = 64;
  const uintptr_t next = reinterpret_cast<uintptr_t>(block) + kBytesAhead;
  for (uintptr_t at = 0; at < kAdamBlock<T> * sizeof(Element); at += kLine)
    __builtin_prefetch(reinterpret_cast<const void*>(next + at));
}

// What becomes of the parameters of the block that starts at element `first` of its piece.
struct RoundToNearest {
  template <typename T, typename V>
  void store_block(T* param, const AdamState<V>* state, int64_t) const {
    for (int j = 0; j < kAdamVectors; ++j) store(param + j * kLanes<Arithmetic<T>>, state[j].param);
  }
};

struct RoundStochastically {
  StochasticRounding rounding;

  template <typename V>
  void store_block(BFloat16* param, const AdamState<V>* state, int64_t first) const {
    constexpr int kGroups = int(kAdamBlock<BFloat16>) / kRoundingGroup;
    static_assert(kGroups * kRoundingGroup == kAdamBlock<BFloat16>, "whole groups only");
    float values[kAdamBlock<BFloat16>];
    for (int j = 0; j < kAdamVectors; ++j) store(values + j * kLanes<float>, state[j].param);
    const int64_t group = (rounding.first + first) / kRoundingGroup;
    for (int k = 0; k < kGroups; ++k) {
      const RandomWords random = rounding_words(rounding.key, group + k);
      for (int i = 0; i < kRoundingGroup; ++i) {
        const int at = k * kRoundingGroup + i;
        param[at] = to_bfloat16(values[at], random, i);
      }
    }
  }
};

// n is a multiple of kAdamBlock.
template <bool kCoupled, typename Rounding, typename T, typename G>
void adam_blocks(T* param, const G* grad, T* exp_avg, T* exp_avg_sq, int64_t n,
                 const AdamSchedule<Arithmetic<T>>& schedule, const Rounding& rounding,
                 int64_t first) {
  using R = Arithmetic<T>;
  using V = Vector<R>;
  const AdamRates<R> rates = schedule.rates;
  const AdamStep<R>* const steps = schedule.steps;
  const int64_t n_steps = schedule.n_steps, repeats = schedule.repeats;
  for (int64_t block = 0; block < n; block += kAdamBlock<T>) {
    AdamState<V> state[kAdamVectors];
    V g[kAdamVectors];
    const auto take = [&](const AdamStep<R>& step) {
      for (int j = 0; j < kAdamVectors; ++j)
        adam_update<kCoupled>(state[j], g[j], rates, step, VectorMath{});
    };
    for (int j = 0; j < kAdamVectors; ++j) {
      const int64_t i = block + j * kLanes<R>;
      state[j] = {load<R>(param + i), load<R>(exp_avg + i), load<R>(exp_avg_sq + i)};
      g[j] = rates.sign * load<R>(grad + i);
    }
    prefetch_block<T>(param + block);
    prefetch_block<T>(exp_avg + block);
    prefetch_block<T>(exp_avg_sq + block);
    prefetch_block<T>(grad + block);
    for (int64_t s = 0; s < n_steps; ++s) take(steps[s]);
    for (int64_t s = n_steps; s < repeats; ++s) take(steps[n_steps - 1]);
    rounding.store_block(param + block, state, first + block);
    for (int j = 0; j < kAdamVectors; ++j) {
      const int64_t i = block + j * kLanes<R>;
      store(exp_avg + i, state[j].exp_avg);
      store(exp_avg_sq + i, state[j].exp_avg_sq);
    }
  }
}

// The last elements go through the same code in a zero-padded block: the value of an element must
// not depend on where in its tensor it lies.
template <bool kCoupled, typename Rounding, typename T, typename G>
void adam_tail(T* param, const G* grad, T* exp_avg, T* exp_avg_sq, int64_t n,
               const AdamSchedule<Arithmetic<T>>& schedule, const Rounding& rounding,
               int64_t first) {
  T p[kAdamBlock<T>] = {}, m[kAdamBlock<T>] = {}, v[kAdamBlock<T>] = {};
  G g[kAdamBlock<T>] = {};
  const size_t bytes = size_t(n) * sizeof(T);
  std::memcpy(p, param, bytes);
  std::memcpy(m, exp_avg, bytes);
  std::memcpy(v, exp_avg_sq, bytes);
  std::memcpy(g, grad, size_t(n) * sizeof(G));
  adam_blocks<kCoupled>(p, g, m, v, kAdamBlock<T>, schedule, rounding, first);
  std::memcpy(param, p, bytes);
  std::memcpy(exp_avg, m, bytes);
  std::memcpy(exp_avg_sq, v, bytes);
}

template <bool kCoupled, typename Rounding, typename T, typename G>
void adam_whole(T* param, const G* grad, T* exp_avg, T* exp_avg_sq, int64_t n,
                const AdamSchedule<Arithmetic<T>>& schedule, const Rounding& rounding) {
  const int64_t whole = n / kAdamBlock<T> * kAdamBlock<T>;
  adam_blocks<kCoupled>(param, grad, exp_avg, exp_avg_sq, whole, schedule, rounding, 0);
  if (whole < n)
    adam_tail<kCoupled>(param + whole, grad + whole, exp_avg + whole, exp_avg_sq + whole, n - whole,
                        schedule, rounding, whole);
}

template <typename Rounding, typename T, typename G>
void adam_sweep(T* param, const G* grad, T* exp_avg, T* exp_avg_sq, int64_t n,
                const AdamSchedule<Arithmetic<T>>& schedule, const Rounding& rounding) {
  if (schedule.rates.coupled_decay != 0)
    adam_whole<true>(param, grad, exp_avg, exp_avg_sq, n, schedule, rounding);
  else
    adam_whole<false>(param, grad, exp_avg, exp_avg_sq, n, schedule, rounding);
}

template <typename T, typename G>
void adam_kernel(T* param, const G* grad, T* exp_avg, T* exp_avg_sq, int64_t n,
                 const AdamSchedule<Arithmetic<T>>& schedule, const StochasticRounding* rounding) {
  if constexpr (std::is_same_v<T, BFloat16>)
    if (rounding)
      return adam_sweep(param, grad, exp_avg, exp_avg_sq, n, schedule,
                        RoundStochastically{*rounding});
  adam_sweep(param, grad, exp_avg, exp_avg_sq, n, schedule, RoundToNearest{});
}

}  // namespace
}  // namespace hullft
