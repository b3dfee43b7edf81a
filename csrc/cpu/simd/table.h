// Fills the table of this translation unit's instruction set. Included by kernels_*.cpp alone.
#pragma once

#include "accumulate.h"
#include "adam.h"
#include "argmax.h"
#include "dot.h"
#include "kernels.h"
#include "sift.h"

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

constexpr AllReplayKernels all_replay_kernels() {
  return {replay_kernels_of<float>(), replay_kernels_of<double>(), replay_kernels_of<BFloat16>(),
          replay_kernels_of<Float16>()};
}

constexpr Kernels make_table(const char* name) {
  return Kernels{
      name,
      &dot_rows_kernel<float>,
      &dot_rows_kernel<double>,
      &dot_rows_kernel<BFloat16>,
      &dot_rows_kernel<Float16>,
      &step_argmax_kernel,
      &squared_norms_kernel<float>,
      &squared_norms_kernel<double>,
      &squared_norms_kernel<BFloat16>,
      &squared_norms_kernel<Float16>,
      &sift_pick_kernel,
      all_replay_kernels(),
  };
}

}  // namespace
}  // namespace hullft
