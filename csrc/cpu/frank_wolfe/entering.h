// The row that enters the support next.
#pragma once

#include <cstdint>

namespace hullft {

struct Entering {
  int64_t row;      // of the largest correlation outside the support, the lowest on ties
  double slope;     // the gap on the simplex, the correlation itself without the sum
  bool is_optimal;  // the slope is no more than rounding
};

}  // namespace hullft
