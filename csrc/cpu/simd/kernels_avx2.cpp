#include "table.h"

namespace hullft {

extern const Kernels kernels_avx2;
constinit const Kernels kernels_avx2 = make_table("avx2");

}  // namespace hullft
