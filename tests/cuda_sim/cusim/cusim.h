// Runs CUDA kernels on the CPU: csrc/cuda includes this instead of cuda_runtime.h when the compiler
// is not nvcc. Needs the CUDA toolkit's headers and boost.context. One OS thread a process.
#pragma once

#include "intrinsics.h"
#include "runtime.h"
