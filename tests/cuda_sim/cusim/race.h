// Data races, reads of uninitialised shared memory and writes to read-only buffers.
#pragma once

#include <cstddef>

namespace cusim::race {

// Forgets all buffers and starts checking.
void clear();
// Watches a device buffer.
void add(const void* p, size_t bytes, const char* name, bool read_only);

}  // namespace cusim::race
