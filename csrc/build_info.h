// What the extension module says of its own build.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>

#include "cpu/simd/instruction_sets.h"
#ifdef HULLFT_KERNELS
#include "cuda_host/device.h"
#endif

namespace hullft {

#ifndef HULLFT_KERNELS
inline std::string cuda_unusable(int) {
  return "this build has no CUDA kernels: install with -C cmake.define.HULLFT_CUDA=ON";
}
#endif

inline void use_simd_level(const std::string& name) {
  if (!choose_simd_level(name))
    throw pybind11::value_error("use_simd_level: '" + name + "' cannot run on this processor");
}

inline pybind11::dict build_info() {
  pybind11::dict info;
  info["version"] = HULLFT_VERSION;
  info["compiler"] = HULLFT_COMPILER;
  info["build_type"] = HULLFT_BUILD_TYPE;
  info["built_against_torch"] = HULLFT_BUILD_TORCH;
  info["torch_target"] = "2.11";
  info["cuda"] = HULLFT_CUDA_VERSION;
  info["cuda_architectures"] = HULLFT_CUDA_ARCHITECTURES;
  return info;
}

}  // namespace hullft
