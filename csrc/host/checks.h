// Argument checks shared by the CPU and CUDA implementations. A failed check throws
// std::invalid_argument, which reaches Python as ValueError.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/shim_utils.h>

#include <cmath>
#include <cstdint>
#include <iomanip>
#include <limits>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>

#include "../core/frank_wolfe.h"

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
    case ScalarType::Int:
      return "int32";
    case ScalarType::Short:
      return "int16";
    case ScalarType::Char:
      return "int8";
    case ScalarType::Byte:
      return "uint8";
    case ScalarType::Bool:
      return "bool";
    case ScalarType::ComplexFloat:
      return "complex64";
    case ScalarType::ComplexDouble:
      return "complex128";
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

// What is named prints itself, so that a name is made for an error alone.
template <typename Name, typename T, typename Ref>
void check_same_device(const char* op, const Name& name, const T& t, const char* ref_name,
                       const Ref& ref) {
  if (t.device() != ref.device())
    value_error(op, name, " is on ", device_name(t.device()), ", ", ref_name, " is on ",
                device_name(ref.device()));
}

inline bool is_floating(ScalarType t) {
  return t == ScalarType::Float || t == ScalarType::Double || t == ScalarType::BFloat16 ||
         t == ScalarType::Half;
}

inline void check_floating(const char* op, const char* name, const Tensor& t) {
  if (!is_floating(t.scalar_type()))
    value_error(op, name, " must be float32, float64, bfloat16 or float16, got ",
                dtype_name(t.scalar_type()));
}

inline void check_like(const char* op, const char* name, const Tensor& t, const char* ref_name,
                       const Tensor& ref) {
  if (t.scalar_type() != ref.scalar_type())
    value_error(op, name, " is ", dtype_name(t.scalar_type()), ", ", ref_name, " is ",
                dtype_name(ref.scalar_type()));
  check_same_device(op, name, t, ref_name, ref);
}

// A storage that was freed or shrunk leaves its tensors' shapes as they were: refuse to read past
// its end.
template <typename Name, typename T>
void check_storage(const char* op, const Name& name, const T& t) {
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
  const int64_t wanted = (last + 1) * int64_t(t.element_size());
  if (t.const_data_ptr() == nullptr || wanted > bytes)
    value_error(op, name, " needs ", wanted, " bytes of storage, it has ", bytes);
}

inline void check_int64(const char* op, const char* name, const Tensor& t, const char* ref_name,
                        const Tensor& ref) {
  if (t.scalar_type() != ScalarType::Long)
    value_error(op, name, " must be int64, got ", dtype_name(t.scalar_type()));
  check_same_device(op, name, t, ref_name, ref);
  check_storage(op, name, t);
}

inline void check_dim(const char* op, const char* name, const Tensor& t, int64_t dim) {
  if (t.dim() != dim) value_error(op, name, " must have ", dim, " dimensions, got ", t.dim());
}

inline void check_range(const char* op, const char* name, int64_t value, int64_t low) {
  if (value < low || value > std::numeric_limits<int32_t>::max())
    value_error(op, name, " must be in ", low, "..2147483647, got ", value);
}

inline void check_tolerance(const char* op, const char* name, double value) {
  if (!(value >= 0)) value_error(op, name, " must be >= 0, got ", value);
}

inline Variant parse_variant(const char* op, const std::string& name) {
  if (name == "vanilla") return Variant::kVanilla;
  if (name == "away") return Variant::kAway;
  if (name == "pairwise") return Variant::kPairwise;
  value_error(op, "variant must be 'vanilla', 'away' or 'pairwise', got '", name, "'");
}

struct PoolShape {
  int64_t batch, candidates, dim;
};

// pool [K, d] (shared by the batch) or [B, K, d]; query [B, d] or, if asked for, [B, m, d].
inline PoolShape check_pool_query(const char* op, const char* pool_name, const Tensor& pool,
                                  const Tensor& query, int64_t query_dim = 2) {
  check_floating(op, pool_name, pool);
  check_like(op, "query", query, pool_name, pool);
  check_dim(op, "query", query, query_dim);
  if (pool.dim() != 2 && pool.dim() != 3)
    value_error(op, pool_name, " must have 2 or 3 dimensions, got ", pool.dim());
  const int64_t last = pool.dim() - 1;
  const PoolShape shape{query.size(0), pool.size(last - 1), pool.size(last)};
  if (query.size(query_dim - 1) != shape.dim)
    value_error(op, "query has dim ", query.size(query_dim - 1), ", ", pool_name, " has dim ",
                shape.dim);
  if (pool.dim() == 3 && pool.size(0) != shape.batch)
    value_error(op, "query has batch ", shape.batch, ", ", pool_name, " has batch ", pool.size(0));
  if (shape.candidates < 1) value_error(op, pool_name, " is empty");
  if (shape.dim < 1) value_error(op, pool_name, " has dim 0");
  check_range(op, "the number of candidates", shape.candidates, 1);
  check_storage(op, pool_name, pool);
  check_storage(op, "query", query);
  return shape;
}

inline void check_sizes(const char* op, const char* name, const std::optional<Tensor>& sizes,
                        const char* pool_name, const Tensor& pool, int64_t batch) {
  if (!sizes) return;
  check_int64(op, name, *sizes, pool_name, pool);
  check_dim(op, name, *sizes, 1);
  if (sizes->size(0) != batch)
    value_error(op, name, " has ", sizes->size(0), " entries, query has batch ", batch);
}

}  // namespace hullft
