// Tensors as flat memory, for operators that pair the elements of several by their address.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "checks.h"
#include "empty.h"

namespace hullft {

// Every element of the range it spans, and each once: contiguous up to the order of dimensions.
inline bool is_dense(const Tensor& t) {
  if (t.is_contiguous()) return true;
  std::vector<std::pair<int64_t, int64_t>> stride_size;
  for (int64_t d = 0; d < t.dim(); ++d)
    if (t.size(d) != 1) stride_size.emplace_back(t.stride(d), t.size(d));
  std::sort(stride_size.begin(), stride_size.end());
  int64_t expected = 1;
  for (const auto& [stride, size] : stride_size) {
    if (stride != expected) return false;
    expected *= size;
  }
  return true;
}

using Strides = std::vector<int64_t>;

inline Strides contiguous_strides(const Tensor& t) {
  Strides strides(size_t(t.dim()));
  int64_t stride = 1;
  for (size_t d = strides.size(); d-- > 0; stride *= t.size(int64_t(d))) strides[d] = stride;
  return strides;
}

inline bool has_strides(const Tensor& t, const Strides& strides) {
  for (int64_t d = 0; d < t.dim(); ++d)
    if (t.size(d) > 1 && t.stride(d) != strides[size_t(d)]) return false;
  return true;
}

// Copies made here are not part of anyone's autograd graph, whatever the caller's grad mode.
class NoGrad {
 public:
  NoGrad() : before_(aoti_torch_grad_mode_is_enabled()) { aoti_torch_grad_mode_set_enabled(false); }
  ~NoGrad() { aoti_torch_grad_mode_set_enabled(before_); }
  NoGrad(const NoGrad&) = delete;
  NoGrad& operator=(const NoGrad&) = delete;

 private:
  bool before_;
};

// The strides with which t and its companions are paired: its own when it is dense, else a
// contiguous tensor's.
inline Strides pairing_strides(const Tensor& t) {
  if (is_dense(t)) return {t.strides().begin(), t.strides().end()};
  return contiguous_strides(t);
}

// A tensor with the strides of its pairing: itself, or a copy.
class FlatTensor {
 public:
  FlatTensor(const Tensor& t, const Strides& strides) {
    if (has_strides(t, strides)) {
      data_ = t.mutable_data_ptr();
      return;
    }
    int32_t dtype;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(t.get(), &dtype));
    copy_.emplace(Copy{t, empty_strided(t, t.dim(), t.sizes().data(), strides.data(), dtype)});
    torch::stable::copy_(copy_->flat, t);
    data_ = copy_->flat.mutable_data_ptr();
  }

  void* data() const { return data_; }

  // Copies the values back to the original, if there is a copy.
  void write_back() {
    if (copy_) torch::stable::copy_(copy_->original, copy_->flat);
  }

 private:
  struct Copy {
    Tensor original, flat;
  };
  std::optional<Copy> copy_;
  void* data_;
};

}  // namespace hullft
