// A block of elements in registers, and Adam steps on it.
#pragma once

#include "real.h"
#include "replay_kernels.h"

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
  template <typename V>
  V quotient(V a, V b) const {
    return a / b;
  }
};

// Vectors in flight: square root and division are long operations that follow one another.
constexpr int kAdamVectors = 2;

template <typename T>
constexpr int64_t kAdamBlock = kAdamVectors * kLanes<Arithmetic<T>>;

// A block in registers.
template <typename R>
struct AdamBlock {
  AdamState<Vector<R>> state[kAdamVectors];
  Vector<R> grad[kAdamVectors];

  template <typename T, typename G>
  AdamBlock(const T* param, const G* g, const T* exp_avg, const T* exp_avg_sq, R sign) {
    for (int j = 0; j < kAdamVectors; ++j) {
      const int64_t i = j * kLanes<R>;
      state[j] = {load<R>(param + i), load<R>(exp_avg + i), load<R>(exp_avg_sq + i)};
      grad[j] = sign * load<R>(g + i);
    }
  }

  template <WeightDecay kDecay, typename Math>
  void take_steps(const AdamSchedule<R>& schedule, const Math& math) {
    const auto take = [&](const AdamStep<R>& step) {
      for (int j = 0; j < kAdamVectors; ++j)
        adam_update<kDecay>(state[j], grad[j], schedule.rates, step, math);
    };
    const int64_t n = schedule.n_steps;
    for (int64_t s = 0; s < n; ++s) take(schedule.steps[s]);
    for (int64_t s = n; s < schedule.repeats; ++s) take(schedule.steps[n - 1]);
  }
};

}  // namespace
}  // namespace hullft
