// The Adam sweep: parameter, gradient and moments are read once, all steps taken in registers, and
// parameter and moments written once.
#pragma once

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
  template <typename V>
  V rounded(V v) const {
    return hullft::rounded(v);
  }
};

// Vectors in flight: square root and division are long operations that follow one another.
constexpr int kAdamVectors = 2;

template <typename T>
constexpr int64_t kAdamBlock = kAdamVectors * kLanes<Arithmetic<T>>;

// n is a multiple of kAdamBlock.
template <typename T, typename G, bool kCoupled>
void adam_blocks(T* param, const G* grad, T* exp_avg, T* exp_avg_sq, int64_t n,
                 const AdamSchedule<Arithmetic<T>>& schedule) {
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
    for (int64_t s = 0; s < n_steps; ++s) take(steps[s]);
    for (int64_t s = n_steps; s < repeats; ++s) take(steps[n_steps - 1]);
    for (int j = 0; j < kAdamVectors; ++j) {
      const int64_t i = block + j * kLanes<R>;
      store(param + i, state[j].param);
      store(exp_avg + i, state[j].exp_avg);
      store(exp_avg_sq + i, state[j].exp_avg_sq);
    }
  }
}

// The last elements go through the same code in a zero-padded block: the value of an element must
// not depend on where in its tensor it lies.
template <typename T, typename G, bool kCoupled>
void adam_tail(T* param, const G* grad, T* exp_avg, T* exp_avg_sq, int64_t n,
               const AdamSchedule<Arithmetic<T>>& schedule) {
  T p[kAdamBlock<T>] = {}, m[kAdamBlock<T>] = {}, v[kAdamBlock<T>] = {};
  G g[kAdamBlock<T>] = {};
  const size_t bytes = size_t(n) * sizeof(T);
  std::memcpy(p, param, bytes);
  std::memcpy(m, exp_avg, bytes);
  std::memcpy(v, exp_avg_sq, bytes);
  std::memcpy(g, grad, size_t(n) * sizeof(G));
  adam_blocks<T, G, kCoupled>(p, g, m, v, kAdamBlock<T>, schedule);
  std::memcpy(param, p, bytes);
  std::memcpy(exp_avg, m, bytes);
  std::memcpy(exp_avg_sq, v, bytes);
}

template <typename T, typename G, bool kCoupled>
void adam_sweep(T* param, const G* grad, T* exp_avg, T* exp_avg_sq, int64_t n,
                const AdamSchedule<Arithmetic<T>>& schedule) {
  const int64_t whole = n / kAdamBlock<T> * kAdamBlock<T>;
  adam_blocks<T, G, kCoupled>(param, grad, exp_avg, exp_avg_sq, whole, schedule);
  if (whole < n)
    adam_tail<T, G, kCoupled>(param + whole, grad + whole, exp_avg + whole, exp_avg_sq + whole,
                              n - whole, schedule);
}

template <typename T, typename G>
void adam_kernel(T* param, const G* grad, T* exp_avg, T* exp_avg_sq, int64_t n,
                 const AdamSchedule<Arithmetic<T>>& schedule) {
  if (schedule.rates.coupled_decay != 0)
    adam_sweep<T, G, true>(param, grad, exp_avg, exp_avg_sq, n, schedule);
  else
    adam_sweep<T, G, false>(param, grad, exp_avg, exp_avg_sq, n, schedule);
}

}  // namespace
}  // namespace hullft
