// What a solver of a batch is given.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace hullft {

// Prefetches the next query's pool while this one computes from the caches. A solver calls
// `prefetch` now and then.
template <typename T>
class ReadAhead {
 public:
  // The rows of d values each, for the caller to fill; none where no query follows.
  std::vector<const T*>& begin(int64_t d) {
    row_bytes_ = d * int64_t(sizeof(T)), row_ = 0, at_ = 0;
    rows_.clear();
    return rows_;
  }

  // At most so many lines, no further than a row goes.
  void prefetch(int64_t lines) {
    if (row_ == rows_.size()) return;
    const char* row = reinterpret_cast<const char*>(rows_[row_]);
    const int64_t end = std::min(row_bytes_, at_ + lines * kLine);
    for (int64_t i = at_; i < end; i += kLine) __builtin_prefetch(row + i, 0, 2);
    at_ = end;
    if (at_ == row_bytes_) at_ = 0, ++row_;
  }

 private:
  static constexpr int64_t kLine = 64;

  std::vector<const T*> rows_;
  int64_t row_bytes_ = 0, at_ = 0;
  size_t row_ = 0;
};

// One query and its pool.
template <typename T>
struct QueryPool {
  const T* const* rows;  // [n_rows], d values each
  int64_t n_rows;
  const T* query;  // [d], or several targets one after the other
  int64_t d;
  int64_t b, batch, query_stride;  // the query's place, and where the others of the batch are
  bool share_rows;                 // among threads
  ReadAhead<T>* ahead;
};

}  // namespace hullft
