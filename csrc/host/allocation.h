// What is said of memory that torch does not give.
#pragma once

#include <cstdint>
#include <string>

namespace hullft {

// `said`: torch's own words, "" where it keeps them to itself, as before 2.13. Memory of valid
// sizes is then taken to be lacking. python/hullft_ops/_ops.py knows how the text starts.
inline std::string allocation_failure(const char* what, int64_t bytes, bool cuda, int device,
                                      const std::string& said) {
  const bool lacking = cuda && (said.empty() || said.find("out of memory") != std::string::npos);
  std::string text =
      lacking ? "hullft_ops: CUDA out of memory: no " : "hullft_ops: torch makes no ";
  text += std::string(what) + " of " + std::to_string(bytes) + " bytes on ";
  text += cuda ? "cuda:" + std::to_string(device) : "the CPU";
  return said.empty() ? text : text + ": " + said.substr(0, said.find('\n'));
}

}  // namespace hullft
