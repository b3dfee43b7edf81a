// What a solver finds for one query, whatever selects.
#pragma once

#include <cstdint>
#include <vector>

namespace hullft {

// The arrays hold n_select values, of which support_size are set.
struct SelectionAnswer {
  std::vector<int64_t> indices, counts;
  std::vector<double> weights;
  int64_t support_size = 0, num_iter = 0;
  double residual = 0, gap = 0;
};

}  // namespace hullft
