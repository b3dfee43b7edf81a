// The update of the correlations by a step, fused with the search for the next vertex.
#pragma once

#include <cstdint>

namespace hullft {

struct ArgMax {
  double value;
  int64_t index;  // the lowest on ties
};

struct TiedMax {
  double value;
  int64_t index;  // the lowest on ties
  bool tied;      // whether others have the value too
};

struct StepKernels {
  // u <- scale * u + toward * column, then argmax of b - u; without a column, u stays. Every array
  // holds n = padded(K) values.
  ArgMax (*step_argmax)(const double* b, double* u, int64_t n, double scale, double toward,
                        const double* column);
  // The same, and whether the maximum is one of several.
  TiedMax (*step_tied_max)(const double* b, double* u, int64_t n, double scale, double toward,
                           const double* column);
};

const StepKernels& step_kernels();

}  // namespace hullft
