# torch's stable ABI: headers and libtorch_cpu alone, so that one binary loads in every torch from
# 2.11 on, CPU or CUDA build. TorchConfig.cmake is not used: in a CUDA build of torch it asks for a
# CUDA toolkit that the build may do without.
execute_process(
  COMMAND "${Python_EXECUTABLE}" -c
          "import importlib.metadata as m, importlib.util as u
spec = u.find_spec('torch')
print(spec.submodule_search_locations[0] if spec else '', m.version('torch') if spec else '', sep=';')"
  OUTPUT_VARIABLE HULLFT_TORCH OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
list(GET HULLFT_TORCH 0 HULLFT_TORCH_ROOT)
list(GET HULLFT_TORCH 1 HULLFT_TORCH_VERSION)
if(NOT HULLFT_TORCH_ROOT)
  message(FATAL_ERROR "hullft_ops: torch >= 2.11 is not installed for ${Python_EXECUTABLE}")
endif()
if(HULLFT_TORCH_VERSION VERSION_LESS 2.11)
  message(FATAL_ERROR "hullft_ops: wants torch >= 2.11 to build, found ${HULLFT_TORCH_VERSION}")
endif()
find_library(HULLFT_TORCH_CPU torch_cpu HINTS "${HULLFT_TORCH_ROOT}/lib" NO_DEFAULT_PATH REQUIRED)

add_library(torch_stable INTERFACE)
target_include_directories(torch_stable SYSTEM INTERFACE "${HULLFT_TORCH_ROOT}/include")
target_compile_definitions(torch_stable INTERFACE TORCH_TARGET_VERSION=0x020b000000000000)
target_link_libraries(torch_stable INTERFACE "${HULLFT_TORCH_CPU}")
