// A CUDA runtime of one device and its driver, as the tests describe them, and what
// csrc/cuda_host/device.cpp says of it.
#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>

#include "cuda_host/device.h"
#include "host/allocation.h"

namespace {

struct Machine {
  int driver, major, minor, error, queries;
};
Machine machine{};
cudaError_t last = cudaSuccess;
std::string message;

cudaError_t done(int error) {
  if (error != cudaSuccess) last = cudaError_t(error);
  return cudaError_t(error);
}

}  // namespace

extern "C" {

cudaError_t cudaDriverGetVersion(int* version) {
  *version = machine.driver;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  ++machine.queries;
  *value = attribute == cudaDevAttrComputeCapabilityMajor ? machine.major : machine.minor;
  return done(machine.error);
}

cudaError_t cudaGetLastError() {
  const cudaError_t error = last;
  last = cudaSuccess;
  return error;
}

const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorInvalidDevice ? "invalid device ordinal" : "another error";
}

void set_machine(int driver, int major, int minor, int error) {
  machine = {driver, major, minor, error, 0};
}

int queries() { return machine.queries; }

int required_driver() { return CUDART_VERSION / 1000 * 1000; }

int last_error() { return last; }

const char* unusable(int device) {
  message = hullft::cuda_unusable(device);
  return message.c_str();
}

const char* no_memory(int cuda, int device, const char* torch_message) {
  message = hullft::allocation_failure("workspace", 4096, cuda != 0, device, torch_message);
  return message.c_str();
}

// What the exception says, or null.
const char* refused(int device) {
  try {
    hullft::check_usable("fw_select", device);
  } catch (const std::runtime_error& e) {
    message = e.what();
    return message.c_str();
  }
  return nullptr;
}

const char* failed(int error) {
  try {
    hullft::check_cuda("fw_select", done(error));
  } catch (const std::runtime_error& e) {
    message = e.what();
    return message.c_str();
  }
  return nullptr;
}

}  // extern "C"
