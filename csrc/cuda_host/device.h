// What a launch needs of a device and its driver, and the errors of the CUDA runtime. No torch
// here.
#pragma once

#include <driver_types.h>

#include <string>

namespace hullft {

// Throws std::runtime_error for a call that failed.
void check_cuda(const char* op, cudaError_t status);

// Why the kernels cannot run on a device, or "" where they can. Asks the driver alone: nothing
// waits for the device.
std::string cuda_unusable(int device);

// Throws std::runtime_error where the kernels cannot run; a device is asked once.
void check_usable(const char* op, int device);

}  // namespace hullft
