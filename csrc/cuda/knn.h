// The nearest rows by inner product, with the residual and gap of their equal weights.
#pragma once

#include <driver_types.h>

#include "frank_wolfe.h"

namespace hullft {

// n_select rows of FwProblem, whatever its other options. A pool smaller than that counts as an
// error of its query, as in launch_frank_wolfe. workspace: correlation_bytes.
cudaError_t launch_knn(const FwProblem& problem, void* workspace, const FwOutputs& outputs,
                       cudaStream_t stream);

}  // namespace hullft
