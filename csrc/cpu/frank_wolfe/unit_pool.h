// The rows of a pool as unit vectors of 16-bit integers, which estimates of correlations are made
// of.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>
#include <vector>

#include "../aligned.h"
#include "../pool.h"
#include "../share_rows.h"
#include "../simd/corrective_kernels.h"
#include "../simd/screening_kernels.h"

namespace hullft {

template <typename T>
class UnitPool {
 public:
  // `share`: the rows, among threads.
  void begin(const T* const* rows, int64_t n_rows, int64_t d, bool share) {
    width_ = quantized_width(d);
    int16_t* units = units_.reserve(n_rows * width_);
    norms_.resize(size_t(n_rows));
    const auto to_units = corrective_kernels().unit_rows(static_cast<const T*>(nullptr));
    for_rows(n_rows, d, share, [&](int64_t begin, int64_t end) {
      to_units(rows + begin, end - begin, d, width_, units + begin * width_, norms_.data() + begin);
    });
  }

  // d, padded with 0 to whole vectors.
  int64_t width() const { return width_; }
  const int16_t* unit(int64_t k) const { return units_.get() + k * width_; }
  // Not finite where a value of the row is not, or its square too large.
  double norm(int64_t k) const { return norms_[size_t(k)]; }

 private:
  int64_t width_ = 0;
  Aligned<int16_t> units_;
  std::vector<double> norms_;
};

// Of the pool that the queries of a batch share; empty where each has its own.
template <typename T>
class SharedUnitPool {
 public:
  explicit SharedUnitPool(const SelectionArguments& arguments) {
    if (arguments.pool.dim() != 2 || arguments.candidates || arguments.batch < 2) return;
    const Pool<T> pool(arguments);
    std::vector<const T*> rows;
    pool.rows(0, arguments.width, rows);
    units_.begin(rows.data(), arguments.width, arguments.dim, true);
    is_shared_ = true;
  }

  const UnitPool<T>* get() const { return is_shared_ ? &units_ : nullptr; }

 private:
  UnitPool<T> units_;
  bool is_shared_ = false;
};

}  // namespace hullft
