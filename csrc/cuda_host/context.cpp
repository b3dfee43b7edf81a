#include "context.h"

#include <dlfcn.h>

#include <stdexcept>
#include <string>

namespace hullft {
namespace {

using StreamOf = int32_t (*)(int32_t device, void** stream);

StreamOf find_stream_of() {
  void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
  if (!library) return nullptr;
  return reinterpret_cast<StreamOf>(dlsym(library, "aoti_torch_get_current_cuda_stream"));
}

}  // namespace

cudaStream_t current_stream(const char* op, int32_t device) {
  static const StreamOf stream_of = find_stream_of();
  if (!stream_of) throw std::runtime_error(std::string(op) + ": this torch was built without CUDA");
  void* stream = nullptr;
  if (stream_of(device, &stream) != 0)
    throw std::runtime_error(std::string(op) + ": no current stream of device " +
                             std::to_string(device));
  return static_cast<cudaStream_t>(stream);
}

}  // namespace hullft
