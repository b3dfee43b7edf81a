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

// `needed` is in bytes; a double, so that products of sizes cannot overflow. `use` says for what.
template <typename... Use>
void check_fits(const char* op, double needed, const Use&... use) {
  static const double memory = double(sysconf(_SC_PHYS_PAGES)) * double(sysconf(_SC_PAGESIZE));
  if (needed > memory)
    value_error(op, use..., " needs ", whole_gigabytes(needed), " GiB, this machine has ",
                whole_gigabytes(memory));
}

// Size of a contiguous copy.
inline double bytes_of(const Tensor& t) { return double(t.numel()) * double(t.element_size()); }

// What `with_dense_rows` copies.
inline double copied_bytes(const Tensor& t) { return has_dense_rows(t) ? 0 : bytes_of(t); }

// How many queries of a batch have a workspace at a time.
inline double at_once(int64_t batch) {
  return double(std::min(batch, int64_t(torch::stable::get_num_threads())));
}

// What a selection writes and copies: three arrays of n_select values a query, a few of one value a
// candidate, and the inputs that are not dense.
inline double selection_bytes(const SelectionArguments& arguments, int64_t n_select) {
  const Tensor& query = arguments.query;
  const double answer = 3.0 * double(n_select) * double(arguments.batch);
  return 8.0 * (answer + 3.0 * double(arguments.width)) + copied_bytes(arguments.pool) +
         (query.dim() == 3 ? bytes_of(query) : copied_bytes(query));
}

inline void check_memory(const SelectionArguments& arguments, int64_t n_select, double needed) {
  check_fits(arguments.op, needed, "n_select ", n_select, " for ", arguments.batch, " queries of ",
             arguments.width, " candidates");
}

}  // namespace hullft
