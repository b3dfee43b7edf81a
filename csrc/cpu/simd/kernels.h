// The table of all kernels for one instruction set. Operators include their own family alone.
#pragma once

#include "corrective_kernels.h"
#include "dot_kernels.h"
#include "pivoting_kernels.h"
#include "replay_kernels.h"
#include "screening_kernels.h"
#include "sift_kernels.h"
#include "step_kernels.h"

namespace hullft {

struct Kernels {
  const char* name;
  AllDotKernels dot;
  StepKernels step;
  ScreeningKernels screening;
  CorrectiveKernels corrective;
  PivotingKernel pivoting;
  SiftPickKernel sift_pick;
  AllReplayKernels replay;
};

}  // namespace hullft
