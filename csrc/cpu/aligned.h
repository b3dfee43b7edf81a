// A growable array of numbers on cache-line boundaries.
#pragma once

#include <cstdint>
#include <memory>
#include <new>

namespace hullft {

template <typename R>
class Aligned {
 public:
  // At least n values, uninitialised; what was there is lost when it has to grow.
  R* reserve(int64_t n) {
    if (n > capacity_) {
      data_.reset(static_cast<R*>(::operator new(size_t(n) * sizeof(R), kAlignment)));
      capacity_ = n;
    }
    return data_.get();
  }
  R* get() const { return data_.get(); }

 private:
  static constexpr std::align_val_t kAlignment{64};
  struct Delete {
    void operator()(R* p) const { ::operator delete(p, kAlignment); }
  };
  std::unique_ptr<R, Delete> data_;
  int64_t capacity_ = 0;
};

using AlignedDoubles = Aligned<double>;

}  // namespace hullft
