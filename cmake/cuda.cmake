# The CUDA kernels. One object library without any torch header; the host side that torch calls is
# plain C++. cudart is linked statically, so that the module loads where there is no CUDA at all; it
# wants a driver of its own major version or later, whatever torch wants.
set(HULLFT_CUDA AUTO CACHE STRING
    "CUDA kernels: ON, OFF, or AUTO: if there are a GPU and a CUDA compiler")
set_property(CACHE HULLFT_CUDA PROPERTY STRINGS AUTO ON OFF)
if(NOT HULLFT_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "hullft_ops: HULLFT_CUDA must be AUTO, ON or OFF, got ${HULLFT_CUDA}")
endif()
set(HULLFT_CUDA_ARCHITECTURES "" CACHE STRING
    "What to compile the kernels for, such as 90-real, at least 80; empty: A100, H100 and B200")
set(HULLFT_CUDA_VERSION "")
set(HULLFT_CUDA_TARGETS "")

if(HULLFT_CUDA STREQUAL "OFF")
  message(STATUS "hullft_ops: compiling for the CPU only (HULLFT_CUDA=OFF)")
  return()
endif()

# Nobody without a GPU should wait minutes for nvcc.
if(HULLFT_CUDA STREQUAL "AUTO")
  file(GLOB HULLFT_GPUS /dev/nvidia[0-9]* /dev/dxg)
  if(NOT HULLFT_GPUS)
    message(STATUS "hullft_ops: compiling for the CPU only: no GPU is visible; to compile the CUDA "
                   "kernels too: pip install -C cmake.define.HULLFT_CUDA=ON ...")
    return()
  endif()
endif()

include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  if(HULLFT_CUDA STREQUAL "ON")
    message(FATAL_ERROR "hullft_ops: HULLFT_CUDA=ON, but there is no working CUDA compiler: put "
                        "nvcc on PATH or set CUDACXX")
  endif()
  message(STATUS "hullft_ops: compiling for the CPU only: no CUDA compiler on PATH or in CUDACXX")
  return()
endif()

enable_language(CUDA)
if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.1)
  message(FATAL_ERROR "hullft_ops: the CUDA kernels want nvcc 12.1 or later, "
                      "${CMAKE_CUDA_COMPILER} is ${CMAKE_CUDA_COMPILER_VERSION}; to leave them out: "
                      "pip install -C cmake.define.HULLFT_CUDA=OFF ...")
endif()
find_package(CUDAToolkit REQUIRED)
# Machine code for each, and PTX of the last for what comes after: that of sm_120 would make the
# binary a third larger. Toolkits before 12.8 do not know sm_100.
if(HULLFT_CUDA_ARCHITECTURES)
  set(HULLFT_CUDA_TARGETS "${HULLFT_CUDA_ARCHITECTURES}")
elseif(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.8)
  set(HULLFT_CUDA_TARGETS 80-real 90)
else()
  set(HULLFT_CUDA_TARGETS 80-real 90-real 100)
endif()
# Reductions of a warp's integers and conversions to bfloat16 are instructions of 8.0.
foreach(HULLFT_TARGET IN LISTS HULLFT_CUDA_TARGETS)
  if(HULLFT_TARGET MATCHES "^(native|all|all-major)$")
    string(REPLACE "-" "_" HULLFT_SUFFIX "${HULLFT_TARGET}")
    string(TOUPPER "${HULLFT_SUFFIX}" HULLFT_SUFFIX)
    set(HULLFT_TARGET_NUMBERS ${CMAKE_CUDA_ARCHITECTURES_${HULLFT_SUFFIX}})
  else()
    set(HULLFT_TARGET_NUMBERS ${HULLFT_TARGET})
  endif()
  foreach(HULLFT_NUMBER IN LISTS HULLFT_TARGET_NUMBERS)
    if(HULLFT_NUMBER MATCHES "^([0-9]+)" AND CMAKE_MATCH_1 LESS 80)
      message(FATAL_ERROR "hullft_ops: the CUDA kernels want architectures of at least 80, "
                          "HULLFT_CUDA_ARCHITECTURES asks for ${CMAKE_MATCH_1} (${HULLFT_TARGET})")
    endif()
  endforeach()
endforeach()
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(HULLFT_CUDA_VERSION "${CMAKE_CUDA_COMPILER_VERSION}")
message(STATUS "hullft_ops: compiling CUDA kernels with nvcc ${HULLFT_CUDA_VERSION} for "
               "${HULLFT_CUDA_TARGETS}, which takes minutes; to leave them out: "
               "pip install -C cmake.define.HULLFT_CUDA=OFF ...")

add_library(hullft_kernels OBJECT
  csrc/cuda/accumulate.cu
  csrc/cuda/adam_replay.cu
  csrc/cuda/correlate.cu
  csrc/cuda/frank_wolfe.cu
  csrc/cuda/fw_corrective.cu
  csrc/cuda/fw_tableau.cu
  csrc/cuda/fw_warp.cu
  csrc/cuda/gram.cu
  csrc/cuda/gram_blocks.cu
  csrc/cuda/integerize.cu
  csrc/cuda/knn.cu
  csrc/cuda/lmo.cu
  csrc/cuda/long_rows.cu
  csrc/cuda/lstsq_adjoint.cu
  csrc/cuda/plan.cu
  csrc/cuda/sift.cu)
# Else nvcc takes a kernel that reaches a function of the host for one that never runs: it is empty.
target_compile_options(hullft_kernels PRIVATE -Werror=cross-execution-space-call)
set_target_properties(hullft_kernels PROPERTIES
  CUDA_ARCHITECTURES "${HULLFT_CUDA_TARGETS}"
  POSITION_INDEPENDENT_CODE ON CUDA_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON)

set(HULLFT_CUDA_HOST_SOURCES
  csrc/cuda_host/accumulate.cpp
  csrc/cuda_host/adam_replay.cpp
  csrc/cuda_host/context.cpp
  csrc/cuda_host/device.cpp
  csrc/cuda_host/frank_wolfe.cpp
  csrc/cuda_host/integerize.cpp
  csrc/cuda_host/knn.cpp
  csrc/cuda_host/lmo.cpp
  csrc/cuda_host/lstsq.cpp
  csrc/cuda_host/sift.cpp)
string(REPLACE ";" " " HULLFT_CUDA_TARGETS "${HULLFT_CUDA_TARGETS}")  # for build_info
