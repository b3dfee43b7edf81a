// Arrays that grow, on cache-line boundaries: a vector of numbers across one is slower to load.
#pragma once

#include <cstdint>
#include <memory>
#include <new>
#include <vector>

namespace hullft {

constexpr std::align_val_t kCacheLine{64};

// Uninitialised memory; its contents are lost when it has to grow.
template <typename R>
class Aligned {
 public:
  // At least n values.
  R* reserve(int64_t n) {
    if (n > capacity_) {
      data_.reset(static_cast<R*>(::operator new(size_t(n) * sizeof(R), kCacheLine)));
      capacity_ = n;
    }
    return data_.get();
  }
  R* get() const { return data_.get(); }

 private:
  struct Delete {
    void operator()(R* p) const { ::operator delete(p, kCacheLine); }
  };
  std::unique_ptr<R, Delete> data_;
  int64_t capacity_ = 0;
};

using AlignedDoubles = Aligned<double>;

template <typename R>
struct CacheLineAllocator {
  using value_type = R;

  R* allocate(size_t n) { return static_cast<R*>(::operator new(n * sizeof(R), kCacheLine)); }
  void deallocate(R* p, size_t) { ::operator delete(p, kCacheLine); }
  bool operator==(const CacheLineAllocator&) const = default;
};

// Keeps its values when it grows.
using AlignedVector = std::vector<double, CacheLineAllocator<double>>;

}  // namespace hullft
