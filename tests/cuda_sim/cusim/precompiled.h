// What build.py compiles once for every unit; cusim.h itself would warn of its #pragma once.
#include "cusim.h"
