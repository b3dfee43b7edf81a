#include "table.h"

namespace hullft {

extern const Kernels kernels_avx512;
constinit const Kernels kernels_avx512 = make_table("avx512");

}  // namespace hullft
