// The options of fw_select.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "../core/frank_wolfe.h"
#include "checks.h"

namespace hullft {

struct FwOptions {
  int64_t n_select, max_iter;
  double tol, gap_tol;
  Variant variant;
  int64_t swap_passes;
  int64_t max_support;  // rows, 1..n_select
};

inline Variant parse_variant(const char* op, const std::string& name) {
  if (name == "vanilla") return Variant::kVanilla;
  if (name == "corrective") return Variant::kCorrective;
  value_error(op, "variant must be one of vanilla, corrective, got '", name, "'");
}

// Any tolerance is allowed: it only ends the loop sooner or later.
inline FwOptions check_fw_options(const char* op, int64_t n_select, int64_t max_iter, double tol,
                                  double gap_tol, const std::string& variant, int64_t swap_passes,
                                  const std::optional<int64_t>& max_support) {
  check_range(op, "n_select", n_select, 1);
  check_range(op, "max_iter", max_iter, 0);
  check_range(op, "swap_passes", swap_passes, 0);
  const int64_t most = max_support.value_or(n_select);
  check_range(op, "max_support", most, 1);
  return {n_select, max_iter, tol, gap_tol, parse_variant(op, variant), swap_passes, most};
}

}  // namespace hullft
