// What a solver of a batch is given.
#pragma once

#include <cstdint>

namespace hullft {

// One query and its pool.
template <typename T>
struct QueryPool {
  const T* const* rows;  // [n_rows], d values each
  int64_t n_rows;
  const T* query;  // [d], or several targets one after the other
  int64_t d;
  int64_t b, batch, query_stride;  // the query's place, and where the others of the batch are
  bool share_rows;                 // among threads
  int64_t pool_id;                 // the same for queries that have the same rows
};

}  // namespace hullft
