// Which instruction set the kernels use, and what the processor has.
#pragma once

#include <string>
#include <vector>

namespace hullft {

// The name of the instruction set in use.
const char* simd_level();

// The names of the instruction sets that this processor can run, widest first.
std::vector<std::string> simd_levels();

// Chooses one by name, for tests and measurements; false when it cannot run here.
bool choose_simd_level(const std::string& name);

// Whether several Adam steps take their quotients by multiplication, with the bits of the division:
// on Intel's processors, where they would wait for the divider.
bool quick_quotients();

// For tests and measurements.
void use_quick_quotients(bool use);

}  // namespace hullft
