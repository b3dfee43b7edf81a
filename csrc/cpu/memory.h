// Refuses what cannot fit this machine before it is asked for: where memory is overcommitted, an
// allocation beyond it succeeds, and writing to it ends the process.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>

#include "../host/checks.h"
#include "../host/selection_arguments.h"

namespace hullft {

// `needed` is in bytes; a double, in which no product of sizes overflows. `asked` says for what.
template <typename... Asked>
void check_fits(const char* op, double needed, const Asked&... asked) {
  static const double has = double(sysconf(_SC_PHYS_PAGES)) * double(sysconf(_SC_PAGESIZE));
  if (needed > has)
    value_error(op, asked..., " needs ", whole_gigabytes(needed), " GiB, this machine has ",
                whole_gigabytes(has));
}

inline void check_memory(const char* op, int64_t n_select, int64_t batch, int64_t candidates,
                         double needed) {
  check_fits(op, needed, "n_select ", n_select, " for ", batch, " queries of ", candidates,
             " candidates");
}

// What a selection writes: three arrays of n_select values a query, and a few of one value a
// candidate.
inline double selection_bytes(int64_t n_select, int64_t batch, int64_t candidates) {
  return 8.0 * (3.0 * double(n_select) * double(batch) + 3.0 * double(candidates));
}

// As it is in one array, which is what views are copied to.
inline double bytes_of(const Tensor& t) { return double(t.numel()) * double(t.element_size()); }

// What `with_dense_rows` copies.
inline double copied_bytes(const Tensor& t) { return has_dense_rows(t) ? 0 : bytes_of(t); }

// How many queries of a batch have a workspace at a time.
inline double at_once(int64_t batch) {
  return double(std::min(batch, int64_t(torch::stable::get_num_threads())));
}

}  // namespace hullft
