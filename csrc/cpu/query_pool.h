// What a solver of a batch is given.
#pragma once

#include <cstdint>

#include "read_ahead.h"

namespace hullft {

// One query and its pool.
template <typename T>
struct QueryPool {
  const T* const* rows;  // [n_rows], d values each
  int64_t n_rows;
  const T* query;  // [d], or several targets one after the other
  int64_t d;
  bool share_rows;  // among threads
  ReadAhead<T>* ahead;
};

}  // namespace hullft
