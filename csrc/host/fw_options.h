// The options of fw_select.
#pragma once

#include <cstdint>
#include <string>

#include "../core/frank_wolfe.h"
#include "checks.h"

namespace hullft {

struct FwOptions {
  int64_t n_select, max_iter;
  double tol, gap_tol;
  Variant variant;
  int64_t swap_passes;
};

inline Variant parse_variant(const char* op, const std::string& name) {
  if (name == "vanilla") return Variant::kVanilla;
  if (name == "away") return Variant::kAway;
  if (name == "pairwise") return Variant::kPairwise;
  value_error(op, "variant must be one of vanilla, away, pairwise, got '", name, "'");
}

// Every tolerance is valid: it only decides when the loop ends.
inline FwOptions check_fw_options(const char* op, int64_t n_select, int64_t max_iter, double tol,
                                  double gap_tol, const std::string& variant, int64_t swap_passes) {
  check_range(op, "n_select", n_select, 1);
  check_range(op, "max_iter", max_iter, 0);
  check_range(op, "swap_passes", swap_passes, 0);
  return {n_select, max_iter, tol, gap_tol, parse_variant(op, variant), swap_passes};
}

}  // namespace hullft
