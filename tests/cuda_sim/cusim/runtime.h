// The few calls of the CUDA runtime that launchers make. Launches are synchronous; what a launch
// throws (a divergent barrier, say) leaves the launcher as a C++ exception, never as a cudaError_t.
#pragma once

#include "schedule.h"

inline cudaError_t cudaGetLastError() { return cudaSuccess; }

inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  if (attribute == cudaDevAttrMaxSharedMemoryPerBlockOptin)
    *value = int(cusim::sim.config.max_shared_bytes);
  else if (attribute == cudaDevAttrMultiProcessorCount)
    *value = cusim::sim.config.sms;
  else
    return cudaErrorInvalidValue;
  return cudaSuccess;
}

template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaErrorInvalidValue;
  if (size_t(value) > cusim::sim.config.max_shared_bytes) return cudaErrorInvalidValue;
  cusim::limit_shared(reinterpret_cast<const void*>(kernel), size_t(value));
  return cudaSuccess;
}

inline cudaError_t cudaDriverGetVersion(int* version) {
  *version = 13'000;
  return cudaSuccess;
}

template <class Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, Kernel*) {
  *attributes = {};
  attributes->ptxVersion = 90;
  return cudaSuccess;
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments... arguments) {
  struct Early {
    explicit Early(bool early) { cusim::sim.early = early; }
    ~Early() { cusim::sim.early = false; }
  } early(config->numAttrs > 0);
  cusim::launch(kernel, config->gridDim, config->blockDim, config->dynamicSmemBytes, arguments...);
  return cudaSuccess;
}

#define CUSIM_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  (void(stream), ::cusim::launch(kernel, grid, block, shared_bytes __VA_OPT__(, ) __VA_ARGS__))
#define CUSIM_DYNAMIC_SHARED() (::cusim::sim.dynamic_shared.get())
