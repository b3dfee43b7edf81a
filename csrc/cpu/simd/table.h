// Fills the table of this translation unit's instruction set. Included by kernels_*.cpp alone.
#pragma once

#include "argmax.h"
#include "dot.h"
#include "kernels.h"

namespace hullft {
namespace {

constexpr Kernels make_table(const char* name) {
  return Kernels{
      name,
      &dot_rows_kernel<float>,
      &dot_rows_kernel<double>,
      &dot_rows_kernel<BFloat16>,
      &dot_rows_kernel<Float16>,
      &step_argmax_kernel,
  };
}

}  // namespace
}  // namespace hullft
