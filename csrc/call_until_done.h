// Calling a Python function again until no signal cuts it short.
#pragma once

#include <pybind11/pybind11.h>

#include <optional>

namespace hullft {

// Python runs the handlers of signals within Python functions alone, so none comes between two of
// these calls. What a handler raised is raised once the function has returned. A second Exception
// is the function's own, and ends the calls; KeyboardInterrupt is none.
inline void call_until_done(const pybind11::object& function) {
  std::optional<pybind11::error_already_set> interrupt;
  bool has_failed = false;
  while (true) {
    try {
      function();
      break;
    } catch (pybind11::error_already_set& error) {
      if (error.matches(PyExc_Exception)) {
        if (has_failed) throw;
        has_failed = true;
      }
      interrupt.emplace(error);
    }
  }
  if (interrupt) throw pybind11::error_already_set(*interrupt);
}

}  // namespace hullft
