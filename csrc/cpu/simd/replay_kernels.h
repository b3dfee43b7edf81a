// Sweeps over parameters, gradients and moments.
#pragma once

#include <cstdint>

#include "../../core/adam.h"
#include "../../core/arithmetic.h"
#include "../../core/dtypes.h"
#include "../../core/stochastic_rounding.h"

namespace hullft {

// The random bits of a piece of a tensor; `first`, its first element, is a multiple of
// kRoundingGroup.
struct StochasticRounding {
  RoundingKey key;
  int64_t first;
};

// Takes schedule.repeats Adam steps on n elements with one gradient; a parameter's moments have its
// own dtype. bfloat16 parameters are rounded to nearest where `rounding` is null.
template <typename T, typename G>
using AdamSweep = void (*)(T* param, const G* grad, T* exp_avg, T* exp_avg_sq, int64_t n,
                           const AdamSchedule<Arithmetic<T>>& schedule,
                           const StochasticRounding* rounding);

// cache <- beta * cache + alpha * grad; with beta = 0 the cache is not read.
template <typename T, typename G>
using Accumulate = void (*)(T* cache, const G* grad, int64_t n, double alpha, double beta);

template <typename T, typename G>
struct ReplayKernels {
  AdamSweep<T, G> adam;
  Accumulate<T, G> accumulate;
};

template <typename T>
struct ReplayKernelsOf : ReplayKernels<T, float>,
                         ReplayKernels<T, double>,
                         ReplayKernels<T, BFloat16>,
                         ReplayKernels<T, Float16> {};

// One base for each pair of storage and gradient type.
struct AllReplayKernels : ReplayKernelsOf<float>,
                          ReplayKernelsOf<double>,
                          ReplayKernelsOf<BFloat16>,
                          ReplayKernelsOf<Float16> {};

const AllReplayKernels& all_replay_kernels();

template <typename T, typename G>
const ReplayKernels<T, G>& replay_kernels() {
  return all_replay_kernels();
}

}  // namespace hullft
