// The correlation of every candidate with the residual, screened in 16-bit integers and decided in
// float64.
//
// Only the largest correlation matters to a step, and only candidates within an error of it can
// have it. So every candidate has an estimate, made of integer products (estimates.h), and the few
// that come near the largest, which are mostly the support, become atoms: theirs is computed in
// float64. The bound on the estimates' error is rigorous, and an atom's correlation has the bits
// that it would have had if it had been one from the start, so the answer is that
// of ExactCorrelations.
//
// Measured on a Sapphire Rapids Xeon with AVX-512, one thread, K = 200, n_select 50, microseconds
// per query without and with screening:
//   float32, d = 384:   1 query 234 and 107, 64 queries 170 and 83
//   float32, d = 1024:  1 query 456 and 178, 64 queries 382 and 170
//   bfloat16, d = 384:  1 query 301 and 109, 64 queries 199 and 80
//   bfloat16, d = 1024: 1 query 753 and 204, 64 queries 550 and 155
#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "../../core/frank_wolfe.h"
#include "../aligned.h"
#include "../query_pool.h"
#include "../simd/screening_kernels.h"
#include "../simd/step_kernels.h"
#include "atom_gram.h"
#include "estimates.h"
#include "support.h"

namespace hullft {

// T is the pool's type. Atoms are numbered in the order in which they became so.
template <typename T>
class ScreenedCorrelations {
 public:
  // The state at w = 0, or false when an estimate is not finite. `support` is the solver's.
  bool begin(const QueryPool<T>& in, int64_t n_select, Support& support) {
    rows_ = in.rows, query_ = in.query, d_ = in.d;
    support_ = &support, kernels_ = &step_kernels();
    support.begin(0);
    atom_of_.assign(size_t(in.n_rows), kNone);
    atoms_.candidate.clear(), atoms_.b.clear(), atoms_.u.clear();
    gram_.begin(in.d);
    movers_.clear(), place_.clear(), moves_.clear();
    best_ = {-std::numeric_limits<double>::infinity(), 0};
    if (!estimates_.begin(in, n_select)) return false;
    admit_contenders(estimates_.error_at_zero());
    return true;
  }

  // The largest correlation in the pool and its atom; the lowest candidate on ties.
  const ArgMax& best() const { return best_; }

  int64_t candidate(int64_t atom) const { return atoms_.candidate[size_t(atom)]; }
  double b(int64_t atom) const { return atoms_.b[size_t(atom)]; }
  double u(int64_t atom) const { return atoms_.u[size_t(atom)]; }

  // G[i, j] of two atoms.
  double gram(int64_t i, int64_t j) { return gram_.row(i)[j]; }
  // Pools whose products may overflow are not screened.
  static constexpr bool all_finite() { return true; }
  // Whether it remembers as many steps as it may.
  bool is_full() const { return moves_.size() >= kMostMoves; }

  // Follows a step of the support toward s. `best` waits for `settle`.
  void follow(const Step<double>& step, int64_t s) {
    if (step.toward > 0) add_mover(s);
    moves_.push_back({step.scale, step.toward, step.toward > 0 ? place_[size_t(s)] : 0});
    follow_exactly(step, s);
    estimates_.follow(step, step.toward > 0 ? candidate(s) : kNone, [this](int64_t k) {
      const int64_t atom = atom_of_[size_t(k)];
      return atom != kNone && support_->has(atom);
    });
  }

  // Finds the best, given the norm of the residual after the step.
  void settle(double residual) {
    const double error = estimates_.error(residual);
    if (estimates_.highest() + error >= best_.value) admit_contenders(error);
  }

 private:
  static constexpr int64_t kNone = -1;
  static constexpr size_t kMostMoves = 1 << 16;  // 1.5 MB

  // In float64; b and u have padded(n) values, b is -infinity in the padding.
  struct Atoms {
    std::vector<int64_t> candidate;
    AlignedVector b, u;
  };

  int64_t n_atoms() const { return int64_t(atoms_.candidate.size()); }

  // ---- which candidates become atoms -----------------------------------------------------------

  // Every candidate whose correlation may be the largest becomes an atom.
  void admit_contenders(double error) {
    admit(estimates_.at_least(float(estimates_.highest())).first(1));
    // That leaves few of the others within reach. Rounded down, so that none is missed.
    const float least =
        std::nextafter(float(best_.value - error), -std::numeric_limits<float>::infinity());
    const std::span<const int64_t> contenders = estimates_.at_least(least);
    if (!contenders.empty()) admit(contenders);
  }

  void admit(std::span<const int64_t> contenders) {
    const int64_t first = n_atoms();
    for (const int64_t k : contenders) {
      estimates_.drop(k);
      atom_of_[size_t(k)] = n_atoms();
      atoms_.candidate.push_back(k);
      gram_.admit(rows_[k]);
      place_.push_back(kNone);
      support_->admit();
    }
    make_room(first);
    const double* products = products_of(first);
    const int64_t width = 1 + int64_t(movers_.size());
    for (int64_t i = first; i < n_atoms(); ++i) {
      const double* of_atom = products + (i - first) * width;
      atoms_.b[size_t(i)] = of_atom[0];
      atoms_.u[size_t(i)] =
          screening_kernels().follow_moves(moves_.data(), int64_t(moves_.size()), of_atom + 1);
      see(i);
    }
    gram_.extend(movers_, products + 1, n_atoms() - first, width);
  }

  // The first n atoms stay as they are.
  void make_room(int64_t n) {
    const size_t size = size_t(padded(n_atoms()));
    atoms_.b.resize(size_t(n));  // drops the padding, which is filled anew
    atoms_.b.resize(size, -std::numeric_limits<double>::infinity());
    atoms_.u.resize(size);
  }

  // [n_atoms() - first, 1 + movers] of the atoms from `first` on with the query and the movers, row
  // by row or column by column, whichever is fewer calls.
  const double* products_of(int64_t first) {
    columns_.assign(1, query_);
    for (const int64_t atom : movers_) columns_.push_back(gram_.atom(atom));
    const int64_t m = n_atoms() - first, width = int64_t(columns_.size());
    double* products = products_.reserve(m * width);
    if (m <= width) {
      for (int64_t i = 0; i < m; ++i)
        dot_kernels<T>().few(columns_.data(), width, gram_.atom(first + i), d_,
                             products + i * width);
      return products;
    }
    double* column = column_.reserve(m);
    for (int64_t j = 0; j < width; ++j) {
      dot_kernels<T>().few(gram_.atoms_from(first), m, columns_[size_t(j)], d_, column);
      for (int64_t i = 0; i < m; ++i) products[i * width + j] = column[i];
    }
    return products;
  }

  // Takes an atom into the running maximum.
  void see(int64_t atom) {
    const double c = b(atom) - u(atom);
    if (c > best_.value || (c == best_.value && candidate(atom) < candidate(best_.index)))
      best_ = {c, atom};
  }

  // ---- steps ------------------------------------------------------------------------------------

  // From now on `admit` keeps the atom's row of the Gram matrix whole.
  void add_mover(int64_t atom) {
    int64_t& place = place_[size_t(atom)];
    if (place != kNone) return;
    place = int64_t(movers_.size());
    movers_.push_back(atom);
    gram_.row(atom);
  }

  void follow_exactly(const Step<double>& step, int64_t s) {
    const TiedMax max =
        kernels_->step_tied_max(atoms_.b.data(), atoms_.u.data(), padded(n_atoms()), step.scale,
                                step.toward, step.toward > 0 ? gram_.row(s) : nullptr);
    best_ = {max.value, max.index};
    if (!max.tied) return;
    // A tie goes to the lowest candidate, not to the first atom.
    for (int64_t i = max.index + 1; i < n_atoms(); ++i)
      if (b(i) - u(i) == best_.value && candidate(i) < candidate(best_.index)) best_.index = i;
  }

  // Between calls:
  // - every candidate either has an estimate or is an atom: atoms_.candidate[atom_of_[k]] == k, and
  //   estimates_ has dropped k;
  // - atoms_, gram_, moves_ and the support number the same atoms;
  // - atoms_.b and u are <x, q> and (G w) with the bits of ExactCorrelations, w the support's
  //   weights, and best_ is the argmax of b - u over all atoms;
  // - after `settle`, no candidate with an estimate has a correlation above best_.value;
  // - gram_ knows the whole rows of the movers.
  Estimates<T> estimates_;
  std::vector<int64_t> atom_of_;  // of each candidate, kNone: none
  Atoms atoms_;
  AtomGram<T> gram_;
  // The steps so far, from which u of an atom that is admitted later follows. Steps go toward the
  // movers: place_[movers_[p]] == p, and kNone for every other atom.
  std::vector<SupportMove> moves_;
  std::vector<int64_t> movers_, place_;
  ArgMax best_{0, 0};
  Support* support_ = nullptr;

  // The current query's.
  const T* const* rows_ = nullptr;
  const T* query_ = nullptr;
  int64_t d_ = 0;
  const StepKernels* kernels_ = nullptr;

  // Scratch of products_of.
  std::vector<const T*> columns_;
  AlignedDoubles products_, column_;
};

}  // namespace hullft
