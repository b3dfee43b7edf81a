// Sharing the rows of one pool among threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>

namespace hullft {

// float64 multiply-adds below which a pass over a pool is not worth sharing.
constexpr int64_t kParallelWork = int64_t(1) << 16;

// body(begin, end) over ranges of the rows, each of `work` such multiply-adds, on the calling
// thread alone unless `share`.
template <typename Body>
void for_rows(int64_t n_rows, int64_t work, bool share, const Body& body) {
  if (share && n_rows * work >= kParallelWork)
    torch::stable::parallel_for(0, n_rows, std::max<int64_t>(1, kParallelWork / (2 * work)), body);
  else
    body(int64_t(0), n_rows);
}

}  // namespace hullft
