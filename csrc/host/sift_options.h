// The options of sift_select.
#pragma once

#include <cmath>
#include <cstdint>

#include "selection_arguments.h"

namespace hullft {

struct SiftOptions {
  int64_t n_select, n_targets;
  double noise;
};

inline SiftOptions check_sift_options(const SelectionArguments& arguments, int64_t n_select,
                                      double noise) {
  const char* op = arguments.op;
  const Tensor& query = arguments.query;
  check_range(op, "n_select", n_select, 1);
  if (!(noise > 0) || std::isinf(noise) || std::isinf(1 / noise))
    value_error(op, "noise must be finite, > 0 and have a reciprocal, got ", noise);
  const int64_t n_targets = query.dim() == 3 ? query.size(1) : 1;
  if (n_targets < 1) value_error(op, "query has no targets");
  return {n_select, n_targets, noise};
}

}  // namespace hullft
