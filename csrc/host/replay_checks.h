// The arguments of adam_replay_ and grad_accumulate_, checked and read the same way on the CPU and
// on CUDA.
#pragma once

#include <cmath>
#include <cstdint>
#include <optional>
#include <vector>

#include "../core/adam.h"
#include "tensor_lists.h"

namespace hullft {

template <typename Name>
void check_not_negative(const char* op, const Name& name, double value) {
  if (!(value >= 0) || std::isinf(value))
    value_error(op, name, " must be finite and >= 0, got ", value);
}

// Arithmetic is float32 but for float64 tensors.
inline void check_single(const char* op, const char* name, double value, const TensorList& list) {
  if (std::isfinite(float(value))) return;
  for (size_t i = 0; i < list.size(); ++i)
    if (dtype_of(list[i]) != ScalarType::Double)
      value_error(op, name, " must be finite in float32, got ", value);
}

// One tensor of an updated list and its companion.
inline void check_companion(const char* op, const TensorList& list, size_t i, const TensorList& ref,
                            const Tensor& first) {
  check_device(op, list, i, first);
  check_same_shape(op, list, i, ref);
  check_storage(op, entry(list, i), list[i]);
}

template <typename Name>
void check_one_value(const char* op, const Name& name, const Tensor& t) {
  const ScalarType type = dtype_of(t);
  if (t.numel() != 1 || (type != ScalarType::Float && type != ScalarType::Double))
    value_error(op, name, " must hold one float32 or float64 value, got ", dtype_name(type),
                " of shape ", shape_text(t.sizes()));
  check_storage(op, name, t);
}

inline void check_adam_lists(const char* op, const TensorList& params, const TensorList& grads,
                             const TensorList& exp_avgs, const TensorList& exp_avg_sqs,
                             const TensorList& steps, const TensorList& lr_tensors) {
  for (const TensorList* list : {&grads, &exp_avgs, &exp_avg_sqs, &steps})
    check_same_length(op, *list, params);
  for (size_t i = 0; i < params.size(); ++i) {
    check_floating(op, entry(params, i), params[i]);
    check_companion(op, params, i, params, params[0]);
    check_floating(op, entry(grads, i), grads[i]);
    check_companion(op, grads, i, params, params[0]);
    for (const TensorList* moments : {&exp_avgs, &exp_avg_sqs}) {
      check_same_dtype(op, *moments, i, params);
      check_companion(op, *moments, i, params, params[0]);
    }
    check_one_value(op, entry(steps, i), steps[i]);
  }
  OverlapCheck overlap(op);
  overlap.add(params, true);
  overlap.add(exp_avgs, true);
  overlap.add(exp_avg_sqs, true);
  overlap.add(grads, false);
  overlap.add_shared(steps);
  overlap.add(lr_tensors, false);
  overlap.run();
}

// The number in a tensor on the CPU.
inline double read_value(const Tensor& t) {
  const void* data = t.const_data_ptr();
  return dtype_of(t) == ScalarType::Double ? *static_cast<const double*>(data)
                                           : double(*static_cast<const float*>(data));
}

// A learning rate in a tensor. One that lies on a GPU is read by the launch, unchecked; then this
// is 0.
inline double read_lr_tensor(const char* op, const Tensor& lr, const TensorList& params) {
  constexpr const char* name = "lr_tensor";
  check_one_value(op, name, lr);
  if (!lr.is_cpu()) {
    if (params.size()) check_same_device(op, name, lr, "the first tensor", params[0]);
    return 0;
  }
  const double value = read_value(lr);
  check_not_negative(op, name, value);
  return value;
}

// How many steps: `repeats`, or the value of the tensor, if there is one. One that lies on a GPU is
// read by the launch, unchecked, and so are the step counts, which it advances; then this is 0.
inline int64_t check_repeats(const char* op, int64_t repeats,
                             const std::optional<Tensor>& repeats_tensor, const TensorList& params,
                             const TensorList& steps) {
  check_range(op, "repeats", repeats, 1);
  if (!repeats_tensor) return repeats;
  constexpr const char* name = "repeats_tensor";
  const Tensor& tensor = *repeats_tensor;
  if (tensor.numel() != 1 || dtype_of(tensor) != ScalarType::Long)
    value_error(op, name, " must hold one int64 value, got ", dtype_name(dtype_of(tensor)),
                " of shape ", shape_text(tensor.sizes()));
  check_storage(op, name, tensor);
  if (tensor.is_cpu()) {
    const int64_t value = *static_cast<const int64_t*>(tensor.const_data_ptr());
    check_range(op, name, value, 1);
    return value;
  }
  if (params.size()) check_same_device(op, name, tensor, "the first tensor", params[0]);
  for (size_t i = 0; i < steps.size(); ++i)
    if (steps[i].is_cpu())
      value_error(op, entry(steps, i), " must be beside ", name, " on the GPU, got cpu");
  return 0;
}

// The factors of the tensors' learning rates; null for 1.
inline const double* values_of(const std::optional<Tensor>& lr_scales) {
  return lr_scales ? static_cast<const double*>(lr_scales->const_data_ptr()) : nullptr;
}

inline void check_lr_scales(const char* op, const Tensor& lr_scales, double lr,
                            const TensorList& params) {
  constexpr const char* name = "lr_scales";
  if (dtype_of(lr_scales) != ScalarType::Double || !lr_scales.is_cpu() ||
      !lr_scales.is_contiguous())
    value_error(op, name, " must be contiguous float64 on the CPU, got ",
                dtype_name(dtype_of(lr_scales)), " of shape ", shape_text(lr_scales.sizes()),
                " on ", device_name(lr_scales.device()));
  if (lr_scales.numel() != int64_t(params.size()))
    value_error(op, name, " must have ", params.size(), " numbers, as params, got ",
                lr_scales.numel());
  check_storage(op, name, lr_scales);
  const auto* scales = static_cast<const double*>(lr_scales.const_data_ptr());
  for (size_t i = 0; i < params.size(); ++i) {
    const Entry scale{name, i};
    check_not_negative(op, scale, scales[i]);
    if (dtype_of(params[i]) != ScalarType::Double && !std::isfinite(float(lr * scales[i])))
      value_error(op, scale, " times lr must be finite in float32, got ", lr * scales[i]);
  }
}

// Checks the arguments of adam_replay_ but for the step counts and the number of steps. Returns the
// options with the learning rate of the tensor, if there is one.
inline AdamOptions check_adam_arguments(const char* op, const TensorList& params,
                                        const TensorList& grads, const TensorList& exp_avgs,
                                        const TensorList& exp_avg_sqs, const TensorList& steps,
                                        AdamOptions options, const std::optional<Tensor>& lr_tensor,
                                        const std::optional<Tensor>& lr_scales) {
  std::vector<Tensor> rates;
  if (lr_tensor) rates.push_back(*lr_tensor);
  const TensorList rate_list{"lr_tensor", rates};
  if (lr_tensor) options.lr = read_lr_tensor(op, *lr_tensor, params);
  check_adam_lists(op, params, grads, exp_avgs, exp_avg_sqs, steps, rate_list);
  check_single(op, "lr", options.lr, params);
  if (lr_scales) check_lr_scales(op, *lr_scales, options.lr, params);
  check_single(op, "weight_decay", options.weight_decay, params);
  return options;
}

// A step count. One that lies beside its parameter on a GPU is read by the launch, unchecked; then
// this is 0.
inline double read_step(const char* op, const TensorList& steps, size_t i, const Tensor& first) {
  if (!steps[i].is_cpu()) {
    check_device(op, steps, i, first);
    return 0;
  }
  const double step = read_value(steps[i]);
  check_not_negative(op, entry(steps, i), step);
  return step;
}

inline void write_step(const Tensor& step, double value) {
  if (dtype_of(step) == ScalarType::Double)
    *static_cast<double*>(step.mutable_data_ptr()) = value;
  else
    *static_cast<float*>(step.mutable_data_ptr()) = float(value);
}

inline void check_accumulate_arguments(const char* op, const TensorList& caches,
                                       const TensorList& grads, double alpha, double beta) {
  check_same_length(op, grads, caches);
  for (size_t i = 0; i < caches.size(); ++i) {
    for (const TensorList* list : {&caches, &grads}) {
      check_floating(op, entry(*list, i), (*list)[i]);
      check_companion(op, *list, i, caches, caches[0]);
    }
  }
  check_single(op, "alpha", alpha, caches);
  check_single(op, "beta", beta, caches);
  OverlapCheck overlap(op);
  overlap.add(caches, true);
  overlap.add(grads, false);
  overlap.run();
}

}  // namespace hullft
