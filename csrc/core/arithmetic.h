// In which precision the multi-tensor operators compute.
#pragma once

#include <type_traits>

namespace hullft {

// float64 as soon as one of the storage types is, float32 otherwise.
template <typename... Storage>
using Arithmetic = std::conditional_t<(std::is_same_v<Storage, double> || ...), double, float>;

}  // namespace hullft
