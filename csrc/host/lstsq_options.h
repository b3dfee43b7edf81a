// The options of simplex_lstsq and nnls.
#pragma once

#include <cstdint>
#include <optional>

#include "selection_arguments.h"

namespace hullft {

// Cycles: most problems take fewer than they have rows.
inline int64_t check_max_iter(const SelectionArguments& arguments,
                              const std::optional<int64_t>& max_iter) {
  if (max_iter) check_range(arguments.op, "max_iter", *max_iter, 0);
  return max_iter.value_or(3 * arguments.width);
}

}  // namespace hullft
