#include "device.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <stdexcept>

namespace hullft {
namespace {

// The runtime works with every driver of its major version and those after it. Launches with more
// than 4 KB of arguments need 12.1.
constexpr int kLeastDriver = std::max(CUDART_VERSION / 1000 * 1000, 12010);

// Reductions of a warp's integers and conversions to bfloat16 are instructions of 8.0.
constexpr int kLeastMajor = 8;

std::string cuda_version(int number) {
  return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10);
}

// The error of a failed call stays behind, and the next launch would report it as its own.
std::string reason(cudaError_t status) {
  cudaGetLastError();
  return cudaGetErrorString(status);
}

}  // namespace

void check_cuda(const char* op, cudaError_t status) {
  if (status == cudaSuccess) return;
  throw std::runtime_error(std::string(op) + ": CUDA error: " + reason(status));
}

std::string cuda_unusable(int device) {
  int driver = 0, major = 0, minor = 0;
  cudaError_t status = cudaDriverGetVersion(&driver);
  if (status == cudaSuccess && driver == 0) return "there is no CUDA driver";
  if (status == cudaSuccess && driver < kLeastDriver)
    return "the driver is for CUDA " + cuda_version(driver) + ", this build wants one for CUDA " +
           cuda_version(kLeastDriver) + " or later";
  if (status == cudaSuccess)
    status = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (status == cudaSuccess)
    status = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  if (status != cudaSuccess) return reason(status);
  if (major < kLeastMajor)
    return "cuda:" + std::to_string(device) + " has compute capability " + std::to_string(major) +
           "." + std::to_string(minor) + ", the kernels want 8.0 or higher";
  return "";
}

void check_usable(const char* op, int device) {
  static std::atomic<uint64_t> usable{0};  // a bit a device
  const uint64_t bit = device < 64 ? uint64_t(1) << device : 0;
  if (usable.load(std::memory_order_relaxed) & bit) return;
  const std::string why = cuda_unusable(device);
  if (!why.empty()) throw std::runtime_error(std::string(op) + ": CUDA error: " + why);
  usable.fetch_or(bit, std::memory_order_relaxed);
}

}  // namespace hullft
