// A growable array of float64 on cache-line boundaries.
#pragma once

#include <cstdint>
#include <memory>
#include <new>

namespace hullft {

class AlignedDoubles {
 public:
  // At least n values, uninitialised; what was there is lost when it has to grow.
  double* reserve(int64_t n) {
    if (n > capacity_) {
      data_.reset(static_cast<double*>(::operator new(size_t(n) * sizeof(double), kAlignment)));
      capacity_ = n;
    }
    return data_.get();
  }
  double* get() const { return data_.get(); }

 private:
  static constexpr std::align_val_t kAlignment{64};
  struct Delete {
    void operator()(double* p) const { ::operator delete(p, kAlignment); }
  };
  std::unique_ptr<double, Delete> data_;
  int64_t capacity_ = 0;
};

}  // namespace hullft
