// The Adam sweep: parameter, gradient and moments are read once, all steps taken in registers, and
// parameter and moments written once.
#pragma once

#include <cstdint>
#include <type_traits>

#include "adam_block.h"
#include "quick_adam.h"

namespace hullft {
namespace {

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
template <WeightDecay kDecay, typename Rounding, typename T, typename G>
void adam_blocks(T* param, const G* grad, T* exp_avg, T* exp_avg_sq, int64_t n,
                 const AdamSchedule<Arithmetic<T>>& schedule, const Rounding& rounding,
                 int64_t first) {
  using R = Arithmetic<T>;
  // A gradient that decay changes has no bound.
  constexpr bool kQuick = kHasQuickQuotients && sizeof(R) == sizeof(float) &&
                          !std::is_same_v<T, BFloat16> && kDecay != WeightDecay::kCoupled;
  // After a block with numbers too small for quick quotients, the next blocks most often have them.
  constexpr int64_t kRetry = 16 * kAdamBlock<T>;
  int64_t quick_from = n;
  if constexpr (kQuick) {
    if (has_ordinary_steps(schedule)) quick_from = 0;
  }
  for (int64_t i = 0; i < n; i += kAdamBlock<T>) {
    const auto load_block = [&] {
      return AdamBlock<R>(param + i, grad + i, exp_avg + i, exp_avg_sq + i, schedule.rates.sign);
    };
    AdamBlock<R> block = load_block();
    prefetch_block<T>(param + i);
    prefetch_block<T>(exp_avg + i);
    prefetch_block<T>(exp_avg_sq + i);
    prefetch_block<T>(grad + i);
    bool done = false;
    if constexpr (kQuick) {
      if (i >= quick_from) {
        done = is_ordinary(block) && take_quick_steps<kDecay>(block, schedule);
        if (!done) {
          block = load_block();
          quick_from = i + kRetry;
        }
      }
    }
    if (!done) block.template take_steps<kDecay>(schedule, VectorMath{});
    rounding.store_block(param + i, block.state, first + i);
    for (int j = 0; j < kAdamVectors; ++j) {
      store(exp_avg + i + j * kLanes<R>, block.state[j].exp_avg);
      store(exp_avg_sq + i + j * kLanes<R>, block.state[j].exp_avg_sq);
    }
  }
}

// The last elements go through the same code in a zero-padded block: the value of an element must
// not depend on where in its tensor it lies.
template <WeightDecay kDecay, typename Rounding, typename T, typename G>
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
  adam_blocks<kDecay>(p, g, m, v, kAdamBlock<T>, schedule, rounding, first);
  std::memcpy(param, p, bytes);
  std::memcpy(exp_avg, m, bytes);
  std::memcpy(exp_avg_sq, v, bytes);
}

template <WeightDecay kDecay, typename Rounding, typename T, typename G>
void adam_whole(T* param, const G* grad, T* exp_avg, T* exp_avg_sq, int64_t n,
                const AdamSchedule<Arithmetic<T>>& schedule, const Rounding& rounding) {
  const int64_t whole = n / kAdamBlock<T> * kAdamBlock<T>;
  adam_blocks<kDecay>(param, grad, exp_avg, exp_avg_sq, whole, schedule, rounding, 0);
  if (whole < n)
    adam_tail<kDecay>(param + whole, grad + whole, exp_avg + whole, exp_avg_sq + whole, n - whole,
                      schedule, rounding, whole);
}

template <typename Rounding, typename T, typename G>
void adam_sweep(T* param, const G* grad, T* exp_avg, T* exp_avg_sq, int64_t n,
                const AdamSchedule<Arithmetic<T>>& schedule, const Rounding& rounding) {
  const auto sweep = [&](auto decay) {
    adam_whole<decay()>(param, grad, exp_avg, exp_avg_sq, n, schedule, rounding);
  };
  using enum WeightDecay;
  switch (weight_decay(schedule.rates)) {
    case kNone:
      return sweep(std::integral_constant<WeightDecay, kNone>{});
    case kCoupled:
      return sweep(std::integral_constant<WeightDecay, kCoupled>{});
    case kDecoupled:
      return sweep(std::integral_constant<WeightDecay, kDecoupled>{});
  }
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
