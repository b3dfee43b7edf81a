// Fills the table of this translation unit's instruction set. Included by kernels_*.cpp alone.
#pragma once

#include "accumulate.h"
#include "adam_sweep.h"
#include "corrective.h"
#include "dot.h"
#include "fw_step.h"
#include "kernels.h"
#include "pivoting.h"
#include "quantized.h"
#include "screening.h"
#include "sift_pick.h"

namespace hullft {
namespace {

template <typename T, typename G>
constexpr ReplayKernels<T, G> replay_pair() {
  return {&adam_kernel<T, G>, &accumulate_kernel<T, G>};
}

template <typename T>
constexpr ReplayKernelsOf<T> replay_kernels_of() {
  return {replay_pair<T, float>(), replay_pair<T, double>(), replay_pair<T, BFloat16>(),
          replay_pair<T, Float16>()};
}

constexpr AllReplayKernels make_replay_kernels() {
  return {replay_kernels_of<float>(), replay_kernels_of<double>(), replay_kernels_of<BFloat16>(),
          replay_kernels_of<Float16>()};
}

template <typename T>
constexpr DotKernels<T> dot_kernels_of() {
  DotKernels<T> kernels{};
  kernels.rows = &dot_rows_kernel<T>;
  kernels.few = &dot_few_kernel<T>;
  kernels.widen = &widen_kernel<T>;
  kernels.squared_norms = &squared_norms_kernel<T>;
  kernels.unit_rows = &unit_rows_kernel<T>;
  if constexpr (sizeof(T) < sizeof(double)) kernels.quantize = &quantize_kernel<T>;
  return kernels;
}

constexpr Kernels make_table(const char* name) {
  return Kernels{
      name,
      {dot_kernels_of<float>(), dot_kernels_of<double>(), dot_kernels_of<BFloat16>(),
       dot_kernels_of<Float16>()},
      {&step_argmax_kernel, &step_tied_max_kernel},
      {&multiply_quantized_kernel, &step_max_kernel<float>, &estimates_from_kernel,
       &highest_without_slot_kernel, &follow_moves_kernel},
      {&estimate_kernel, &combine_kernel, &solve_lower_kernel, &solve_upper_kernel},
      {kDoubles, &Pivoting::work, &pivot_kernel},
      &pick_kernel,
      make_replay_kernels(),
  };
}

}  // namespace
}  // namespace hullft
