// Uninitialised tensors, made past torch's dispatcher: through it the outputs of a selection take a
// tenth of the time of one query.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <stdexcept>

#include "allocation.h"
#include "checks.h"

// torch has it from 2.13 on.
extern "C" __attribute__((weak)) const char* torch_exception_get_what_without_backtrace();

namespace hullft {

// On the device of `beside`; dtype in the shim's numbers; `what` for an error.
inline Tensor empty_strided(const Tensor& beside, int64_t dim, const int64_t* sizes,
                            const int64_t* strides, int32_t dtype, const char* what = "tensor") {
  int32_t device_type;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(beside.get(), &device_type));
  const int32_t device = beside.get_device_index();
  AtenTensorHandle handle;
  if (aoti_torch_empty_strided(dim, sizes, strides, dtype, device_type, device, &handle) ==
      AOTI_TORCH_SUCCESS)
    return Tensor(handle);
  // In double, so that products cannot overflow.
  double bytes = double(aoti_torch_dtype_element_size(dtype));
  for (int64_t d = 0; d < dim; ++d) bytes *= double(sizes[d]);
  throw std::runtime_error(allocation_failure(
      what, int64_t(std::min(bytes, 0x1p62)), device_type == aoti_torch_device_type_cuda(), device,
      torch_exception_get_what_without_backtrace ? torch_exception_get_what_without_backtrace()
                                                 : ""));
}

// For the dtypes that operators return.
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
