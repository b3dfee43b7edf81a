// Uninitialised tensors, made past torch's dispatcher: through it the outputs of a selection take a
// tenth of the time of one query.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <stdexcept>

#include "checks.h"

namespace hullft {

// On the device of `beside`; dtype in the shim's numbers.
inline Tensor empty_strided(const Tensor& beside, int64_t dim, const int64_t* sizes,
                            const int64_t* strides, int32_t dtype) {
  int32_t device_type;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(beside.get(), &device_type));
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(dim, sizes, strides, dtype, device_type,
                                                         beside.get_device_index(), &handle));
  return Tensor(handle);
}

// Of the dtypes that operators return.
inline int32_t shim_dtype(ScalarType type) {
  switch (type) {
    case ScalarType::Long:
      return aoti_torch_dtype_int64();
    case ScalarType::Double:
      return aoti_torch_dtype_float64();
    case ScalarType::Float:
      return aoti_torch_dtype_float32();
    default:
      throw std::logic_error("hullft_ops: no operator returns this dtype");
  }
}

// Contiguous, on the device of `beside`.
template <size_t n>
Tensor empty_beside(const Tensor& beside, const std::array<int64_t, n>& sizes, ScalarType type) {
  std::array<int64_t, n> strides;
  int64_t stride = 1;
  for (size_t i = n; i-- > 0;) {
    strides[i] = stride;
    stride *= sizes[i] > 1 ? sizes[i] : 1;
  }
  return empty_strided(beside, int64_t(n), sizes.data(), strides.data(), shim_dtype(type));
}

}  // namespace hullft
