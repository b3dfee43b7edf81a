// A batch of pools and queries as raw pointers, the way every selection kernel gets them.
#pragma once

#include <cstdint>

namespace hullft {

enum class Storage : int { kFloat32, kFloat64, kBFloat16, kFloat16 };

inline int64_t bytes_of(Storage s) {
  return s == Storage::kFloat64 ? 8 : s == Storage::kFloat32 ? 4 : 2;
}

// Strides count elements. Row k of query b lies at base + b * batch_stride + r * row_stride with
// r = candidates[b * candidates_stride + k], or r = k without candidates.
struct PoolView {
  const void* base;
  int64_t batch_stride;  // 0: one pool for the whole batch, or indexed
  int64_t row_stride;
  int64_t n_rows;             // rows at base, the bound of a candidate
  const int64_t* candidates;  // or null
  int64_t candidates_stride;
  const int64_t* sizes;  // [batch], how many candidates each query sees, or null: width
  int width;             // candidates of a query at most
  int64_t d;
  Storage storage;
  bool vectors;  // every row and query starts at a multiple of 16 bytes
};

// The type of state and outputs: float64 for float64 pools, float32 for all others.
inline int64_t real_bytes_of(Storage s) { return s == Storage::kFloat64 ? 8 : 4; }

struct QueryView {
  const void* base;
  int64_t stride;
};

inline bool aligned16(const void* p, int64_t stride, Storage s) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0 && stride * bytes_of(s) % 16 == 0;
}

inline bool reads_vectors(const PoolView& pool, const QueryView& query) {
  return aligned16(pool.base, pool.row_stride, pool.storage) &&
         aligned16(pool.base, pool.batch_stride, pool.storage) &&
         aligned16(query.base, query.stride, pool.storage);
}

}  // namespace hullft
