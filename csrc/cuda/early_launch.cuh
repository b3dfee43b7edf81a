// Programmatic dependent launch: from sm_90 on, a kernel starts while the one before it on the
// stream still runs, and waits where it needs that one's results. What the kernel before could read
// at its own start may be read before the wait. Elsewhere, a launch is as any other.
#pragma once

#include "device.cuh"

namespace hullft {

// Until the kernel before has ended and its writes can be read. Every thread calls it, whatever
// comes after, or the stream would go on before that kernel has ended.
__device__ __forceinline__ void wait_for_kernel_before() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
}

// The next kernel on the stream may start once every block has called this or ended.
__device__ __forceinline__ void let_next_kernel_start() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion();
#endif
}

// A launch of a kernel that calls wait_for_kernel_before, early where the card and the driver can:
// machine code made of older PTX has no instruction to wait, whatever the card, and graphs can hold
// such a launch since CUDA 12.3. Asked once for each type of kernel, until the thread goes to
// another device.
template <typename... Parameters, typename... Arguments>
cudaError_t launch_early(void (*kernel)(Parameters...), dim3 grid, dim3 block, cudaStream_t stream,
                         Arguments... arguments) {
  thread_local int asked_of = -1;
  thread_local bool early = false;
  int device = 0, driver = 0;
  cudaError_t status = cudaGetDevice(&device);
  if (status == cudaSuccess && device != asked_of) {
    cudaFuncAttributes attributes{};
    status = cudaFuncGetAttributes(&attributes, kernel);
    if (status == cudaSuccess) status = cudaDriverGetVersion(&driver);
    early = attributes.ptxVersion >= 90 && driver >= 12'030;
    if (status == cudaSuccess) asked_of = device;
  }
  if (status != cudaSuccess) return status;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid, config.blockDim = block, config.stream = stream;
  config.attrs = &attribute, config.numAttrs = early ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

}  // namespace hullft
