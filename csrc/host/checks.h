// Checks of single arguments, shared by the CPU and CUDA implementations: what keeps a direct call
// of an operator within its tensors' memory. The public functions check everything else before
// (python/hullft_ops/_checks.py). A failed check throws std::invalid_argument, which reaches Python
// as ValueError.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/shim_utils.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <iomanip>
#include <limits>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>

// The headers of torch 2.11 have the plain one alone, which does not repeat what torch said.
#ifndef STABLE_TORCH_ERROR_CODE_CHECK
#define STABLE_TORCH_ERROR_CODE_CHECK(call) TORCH_ERROR_CODE_CHECK(call)
#endif

namespace hullft {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <typename... Parts>
[[noreturn]] void value_error(const char* op, const Parts&... parts) {
  std::ostringstream message;
  message << op << ": ";
  (message << ... << parts);
  throw std::invalid_argument(message.str());
}

inline std::string whole_gigabytes(double bytes) {
  std::ostringstream text;
  text << std::fixed << std::setprecision(0) << std::floor(bytes / double(1 << 30));
  return text.str();
}

inline const char* dtype_name(ScalarType t) {
  switch (t) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Half:
      return "float16";
    case ScalarType::Long:
      return "int64";
    default:
      return torch::headeronly::toString(t);
  }
}

// scalar_type() asks torch up to twenty questions, and a model has hundreds of tensors.
inline ScalarType dtype_of(const Tensor& t) {
  static const std::pair<int32_t, ScalarType> floats[] = {
      {aoti_torch_dtype_float32(), ScalarType::Float},
      {aoti_torch_dtype_bfloat16(), ScalarType::BFloat16},
      {aoti_torch_dtype_float16(), ScalarType::Half},
      {aoti_torch_dtype_float64(), ScalarType::Double}};
  int32_t code = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(t.get(), &code));
  for (const auto& [known, dtype] : floats)
    if (code == known) return dtype;
  return t.scalar_type();
}

inline std::string device_name(const torch::stable::Device& device) {
  const std::string index = device.has_index() ? ":" + std::to_string(device.index()) : "";
  switch (device.type()) {
    case torch::headeronly::DeviceType::CPU:
      return "cpu";
    case torch::headeronly::DeviceType::CUDA:
      return "cuda" + index;
    case torch::headeronly::DeviceType::Meta:
      return "meta";
    default:
      return "device type " + std::to_string(int(device.type())) + index;
  }
}

// `name` prints itself, so that its text is made for an error alone.
template <typename Name>
void check_same_device(const char* op, const Name& name, const Tensor& t, const char* ref_name,
                       const Tensor& ref) {
  if (t.device() != ref.device())
    value_error(op, name, " is on ", device_name(t.device()), ", ", ref_name, " is on ",
                device_name(ref.device()));
}

inline bool is_floating(ScalarType t) {
  return t == ScalarType::Float || t == ScalarType::Double || t == ScalarType::BFloat16 ||
         t == ScalarType::Half;
}

// State and outputs are float64 for float64 pools, float32 for all others.
inline ScalarType real_type(const Tensor& pool) {
  return pool.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

template <typename Name>
void check_floating(const char* op, const Name& name, const Tensor& t) {
  if (!is_floating(dtype_of(t)))
    value_error(op, name, " must be float32, float64, bfloat16 or float16, got ",
                dtype_name(dtype_of(t)));
}

// "[2, 3]"
template <typename Sizes>
std::string shape_text(const Sizes& sizes) {
  std::ostringstream text;
  text << "[";
  const char* separator = "";
  for (const int64_t size : sizes) {
    text << separator << size;
    separator = ", ";
  }
  text << "]";
  return text.str();
}

// A storage that was freed or shrunk leaves its tensors' shapes as they were: refuse to read past
// its end.
template <typename Name>
void check_storage(const char* op, const Name& name, const Tensor& t) {
  const int64_t numel = t.numel();
  if (numel == 0) return;
  int64_t bytes = 0, offset = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(t.get(), &bytes));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_offset(t.get(), &offset));
  int64_t last = offset + numel - 1;
  if (!t.is_contiguous()) {
    last = offset;
    for (int64_t d = 0; d < t.dim(); ++d) last += (t.size(d) - 1) * t.stride(d);
  }
  const int64_t needed = (last + 1) * int64_t(t.element_size());
  if (t.const_data_ptr() == nullptr || needed > bytes)
    value_error(op, name, " needs ", needed, " bytes of storage, it has ", bytes);
}

// A tensor that lies beside another one.
inline void check_tensor(const char* op, const char* name, const Tensor& t, ScalarType dtype,
                         std::initializer_list<int64_t> shape, const char* ref_name,
                         const Tensor& ref) {
  if (dtype_of(t) != dtype)
    value_error(op, name, " must be ", dtype_name(dtype), ", got ", dtype_name(dtype_of(t)));
  check_same_device(op, name, t, ref_name, ref);
  const auto sizes = t.sizes();
  if (!std::equal(sizes.begin(), sizes.end(), shape.begin(), shape.end()))
    value_error(op, name, " must have shape ", shape_text(shape), ", got ", shape_text(sizes));
  check_storage(op, name, t);
}

inline void check_dim(const char* op, const char* name, const Tensor& t, int64_t dim) {
  if (t.dim() != dim) value_error(op, name, " must have ", dim, " dimensions, got ", t.dim());
}

inline void check_range(const char* op, const char* name, int64_t value, int64_t low) {
  if (value < low || value > std::numeric_limits<int32_t>::max())
    value_error(op, name, " must be in ", low, "..2147483647, got ", value);
}

}  // namespace hullft
