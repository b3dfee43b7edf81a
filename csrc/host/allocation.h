// The error for memory that torch does not give.
#pragma once

#include <cstdint>
#include <string>

namespace hullft {

// `reason`: torch's own words, "" where it keeps them to itself, as before 2.13. Memory of valid
// sizes is then taken to be lacking. python/hullft_ops/_ops.py knows how the text starts.
inline std::string allocation_failure(const char* what, int64_t bytes, bool cuda, int device,
                                      const std::string& reason) {
  const bool lacking =
      cuda && (reason.empty() || reason.find("out of memory") != std::string::npos);
  std::string text =
      lacking ? "hullft_ops: CUDA out of memory: no " : "hullft_ops: torch makes no ";
  text += std::string(what) + " of " + std::to_string(bytes) + " bytes on ";
  text += cuda ? "cuda:" + std::to_string(device) : "the CPU";
  return reason.empty() ? text : text + ": " + reason.substr(0, reason.find('\n'));
}

}  // namespace hullft
