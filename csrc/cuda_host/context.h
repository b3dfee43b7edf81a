// The device and its current stream.
#pragma once

#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>

#include "../cuda/plan.h"
#include "../host/empty.h"
#include "device.h"

namespace hullft {

// torch's current stream of a device. Looked up in the loaded libtorch_cuda.so: linking it would
// keep the extension from loading in CPU builds of torch.
cudaStream_t current_stream(const char* op, int32_t device);

// Makes a tensor's device the current one for as long as it lives.
class CudaContext {
 public:
  CudaContext(const char* op, const torch::stable::Tensor& t)
      : op_(op), device_(t.get_device_index()), guard_(device_) {
    check_usable(op, device_);
    // The guard set it for torch's copy of the CUDA runtime; this extension links its own.
    check_cuda(op, cudaSetDevice(device_));
    stream_ = current_stream(op, device_);
  }

  cudaStream_t stream() const { return stream_; }

  // Scratch memory of torch's allocator, whose reuse follows the current stream.
  torch::stable::Tensor workspace(const torch::stable::Tensor& like, int64_t bytes) const {
    constexpr int64_t kStride = 1;
    return empty_strided(like, 1, &bytes, &kStride, aoti_torch_dtype_uint8(), "workspace");
  }

  LaunchLimits limits() const {
    LaunchLimits limits{};
    check_cuda(op_, device_limits(&limits));
    return limits;
  }

 private:
  const char* op_;
  int32_t device_;
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

}  // namespace hullft
