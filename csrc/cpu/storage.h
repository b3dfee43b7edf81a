// From torch's dtypes to the storage types of core/dtypes.h and back.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cmath>
#include <cstdint>

#include "../core/dtypes.h"
#include "../host/checks.h"

namespace hullft {

// data_ptr<T> exists for torch's own 16-bit types only; the storage is the same.
template <typename T>
const T* data(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}

template <typename Body>
auto dispatch_floating(ScalarType t, const Body& body) {
  switch (t) {
    case ScalarType::Double:
      return body(double{});
    case ScalarType::BFloat16:
      return body(BFloat16{});
    case ScalarType::Half:
      return body(Float16{});
    default:
      return body(float{});
  }
}

// A dense float32 or float64 input.
class RealInput {
 public:
  explicit RealInput(const Tensor& t)
      : dense_(torch::stable::contiguous(t)), wide_(t.scalar_type() == ScalarType::Double) {}

  double operator[](int64_t i) const {
    return wide_ ? data<double>(dense_)[i] : double(data<float>(dense_)[i]);
  }

 private:
  Tensor dense_;
  bool wide_;
};

// A float32 or float64 output, its address and dtype asked of torch once.
class RealOutput {
 public:
  explicit RealOutput(const Tensor& t)
      : data_(t.mutable_data_ptr()), wide_(t.scalar_type() == ScalarType::Double) {}

  // False when the value is too large for the output's dtype.
  bool set(int64_t i, double value) const {
    if (wide_) {
      static_cast<double*>(data_)[i] = value;
      return true;
    }
    const float narrow = float(value);
    static_cast<float*>(data_)[i] = narrow;
    return std::isfinite(narrow);
  }

 private:
  void* data_;
  bool wide_;
};

}  // namespace hullft
