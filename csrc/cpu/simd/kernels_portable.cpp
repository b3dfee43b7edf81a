#include "table.h"

namespace hullft {

extern const Kernels kernels_portable;
constinit const Kernels kernels_portable = make_table("portable");

}  // namespace hullft
