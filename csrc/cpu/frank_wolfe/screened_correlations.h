// The correlation of every candidate with the residual, screened in 16-bit integers and decided in
// float64.
//
// Only the largest correlation matters to a step, and only candidates within an error of it can
// have it. So every candidate has an estimate, made of integer products (quantized_pool.h), and the
// few that come near the largest, which are mostly the support, become atoms: theirs is computed in
// float64. The bound on the estimates' error is rigorous, and an atom's correlation has the bits
// that it would have had if it had been one from the start, which makes the answer that of
// ExactCorrelations.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "../../core/frank_wolfe.h"
#include "../column_cache.h"
#include "../query_pool.h"
#include "quantized_pool.h"
#include "support.h"

namespace hullft {

// T is the pool's type. Atoms are numbered in the order in which they became so.
template <typename T>
class ScreenedCorrelations {
 public:
  // The state at w = 0, or false when an estimate is not finite, which says nothing of what it
  // estimates. `support` is the solver's.
  bool begin(const QueryPool<T>& in, int64_t n_select, Support& support) {
    const int64_t n_rows = in.n_rows;
    rows_ = in.rows, query_ = in.query, n_ = padded(n_rows), d_ = in.d;
    support_ = &support, kernels_ = &kernels();
    support.begin(0);
    atom_of_.assign(size_t(n_rows), kNone);
    n_atoms_ = 0;
    movers_.clear(), place_.clear(), moves_.clear();
    float* b = b_.reserve(n_);
    if (!pool_.begin(in, b)) return false;
    std::fill(b + n_rows, b + n_, -std::numeric_limits<float>::infinity());
    std::fill_n(u_.reserve(n_), n_, 0.0f);
    drift_ = 0;
    columns_.begin(n_rows, n_select + 1);
    best_ = {-std::numeric_limits<double>::infinity(), 0};
    highest_ = kernels_->screened_step_max(b, u_.get(), n_, 1, 0, nullptr, 0, nullptr);
    admit_contenders(pool_.error(pool_.query_norm()));
    return true;
  }

  // The largest correlation in the pool and its atom; the lowest candidate on ties.
  const ArgMax& best() const { return best_; }

  int64_t candidate(int64_t atom) const { return candidates_[size_t(atom)]; }
  double b(int64_t atom) const { return exact_b_[size_t(atom)]; }
  double u(int64_t atom) const { return exact_u_[size_t(atom)]; }

  // G[i, j] of two atoms.
  double gram(int64_t i, int64_t j) { return gram_row(i)[j]; }
  // Pools whose products may overflow are not screened.
  static constexpr bool all_finite() { return true; }
  // Whether it has kept all the steps that it may.
  bool is_full() const { return moves_.size() >= kMostMoves; }

  // Follows a step of the support toward s, away from a, or both. `best` waits for `settle`.
  void follow(const Step<double>& step, int64_t s, int64_t a) {
    remember(step, s, a);
    follow_exactly(step, s, a);
    highest_ = kernels_->screened_step_max(b_.get(), u_.get(), n_, step.scale, step.toward,
                                           step.toward > 0 ? column(s) : nullptr, step.away,
                                           step.away > 0 ? column(a) : nullptr);
    drift_ = step.scale * drift_ + pool_.rounding(step.scale + step.toward + step.away);
  }

  // Finds the best, given the norm of the residual after the step.
  void settle(double residual) {
    const double error = pool_.error(residual) + drift_;
    if (highest_ + error >= best_.value) admit_contenders(error);
  }

 private:
  static constexpr int64_t kNone = -1;
  static constexpr size_t kMostMoves = 1 << 16;  // 2.5 MB
  // Rows not asked for yet need no memory.
  struct GramRow {
    std::vector<double> values;  // of the first `known` atoms, then 0 in the padding
    int64_t known = 0;
  };

  // ---- estimates, of every candidate that is no atom ------------------------------------------

  // The candidates of these estimates and higher ones, in order.
  int64_t estimates_from(float least) {
    return kernels_->estimates_from(b_.get(), u_.get(), n_, least, found_.reserve(n_));
  }

  // Of an atom, and in the same pass over the pool of the candidates that are likely to be next.
  const float* column(int64_t atom) {
    if (const float* column = columns_.find(candidate(atom))) return column;
    const int64_t most = three_columns() ? 3 : 2;
    int64_t atoms[kMostColumns], n = 0;
    float* out[kMostColumns];
    for (int64_t k = candidate(atom); n < most && k != kNone; k = likely_next()) {
      atoms[n] = k;
      out[n++] = columns_.place(k, [this](int64_t other) {
        return atom_of_[size_t(other)] != kNone && support_->has(atom_of_[size_t(other)]);
      });
    }
    pool_.multiply(atoms, n, out);
    return out[0];
  }

  // The candidate of highest estimate that is no atom and has no column, or kNone.
  int64_t likely_next() const {
    return kernels_->highest_without_slot(b_.get(), u_.get(), columns_.slots(), n_);
  }

  // ---- atoms ----------------------------------------------------------------------------------

  // Every candidate whose correlation may be the largest becomes an atom.
  void admit_contenders(double error) {
    estimates_from(float(highest_));
    contenders_.assign(1, found_.get()[0]);
    admit();  // leaves few of the others within reach
    // Rounded down, so that none is missed.
    const float least =
        std::nextafter(float(best_.value - error), -std::numeric_limits<float>::infinity());
    const int64_t n = estimates_from(least);
    contenders_.assign(found_.get(), found_.get() + n);
    if (!contenders_.empty()) admit();
  }

  // The list of atoms that steps went toward or away from, and where in it an atom is.
  int64_t place_of_mover(int64_t atom) {
    int64_t& place = place_[size_t(atom)];
    if (place == kNone) {
      place = int64_t(movers_.size());
      movers_.push_back(atom);
      complete(atom);
    }
    return place;
  }

  void remember(const Step<double>& step, int64_t s, int64_t a) {
    const int64_t at_s = step.toward > 0 ? place_of_mover(s) : 0;
    const int64_t at_a = step.away > 0 ? place_of_mover(a) : 0;
    moves_.push_back({step.scale, step.toward, step.away, at_s, at_a});
  }

  // Makes atoms of contenders_.
  void admit() {
    const int64_t first = n_atoms_;
    candidates_.resize(size_t(first));  // drops the previous query's
    for (const int64_t k : contenders_) {
      atom_of_[size_t(k)] = n_atoms_++;
      candidates_.push_back(k);
      b_.get()[k] = -std::numeric_limits<float>::infinity();  // no estimate any more
      support_->admit();
    }
    make_room();
    atom_rows_.assign(1, query_);
    for (const int64_t atom : movers_) atom_rows_.push_back(rows_[candidate(atom)]);
    const int64_t m = int64_t(contenders_.size()), width = int64_t(atom_rows_.size());
    const double* products = exact_block();
    for (int64_t i = 0; i < m; ++i) {
      const double* of_atom = products + i * width;
      exact_b_[size_t(first + i)] = of_atom[0];
      exact_u_[size_t(first + i)] =
          kernels_->follow_moves(moves_.data(), int64_t(moves_.size()), of_atom + 1);
      for (size_t j = 0; j < movers_.size(); ++j)
        gram_[size_t(movers_[j])].values[size_t(first + i)] = of_atom[j + 1];
      see(first + i);
    }
    for (const int64_t atom : movers_) gram_[size_t(atom)].known = n_atoms_;
  }

  // Room for all atoms in what has a value an atom.
  void make_room() {
    const size_t size = size_t(padded(n_atoms_)), n = size_t(n_atoms_);
    exact_b_.resize(n);  // drops the padding, which is filled anew
    exact_b_.resize(size, -std::numeric_limits<double>::infinity());
    exact_u_.resize(size);
    place_.resize(n, kNone);
    if (gram_.size() < n) gram_.resize(n);
    for (size_t i = n - contenders_.size(); i < n; ++i) gram_[i].known = 0;
    for (const int64_t atom : movers_) gram_[size_t(atom)].values.resize(size);
  }

  const double* gram_row(int64_t i) {
    if (gram_[size_t(i)].known < n_atoms_) complete(i);
    return gram_[size_t(i)].values.data();
  }

  // Computes what row i lacks. Once it is a mover's, `admit` keeps it whole.
  void complete(int64_t i) {
    GramRow& row = gram_[size_t(i)];
    if (row.known == 0) row.values.clear();
    row.values.resize(size_t(padded(n_atoms_)));
    missing_.clear(), atom_rows_.clear();
    for (int64_t j = row.known; j < n_atoms_; ++j) {
      const GramRow& other = gram_[size_t(j)];
      if (other.known > i) {
        row.values[size_t(j)] = other.values[size_t(i)];
      } else {
        missing_.push_back(j);
        atom_rows_.push_back(rows_[candidate(j)]);
      }
    }
    double* products = block_.reserve(int64_t(missing_.size()));
    exact_products(atom_rows_, rows_[candidate(i)], products);
    for (size_t j = 0; j < missing_.size(); ++j) row.values[size_t(missing_[j])] = products[j];
    row.known = n_atoms_;
  }

  void follow_exactly(const Step<double>& step, int64_t s, int64_t a) {
    const TiedMax found = kernels_->step_tied_max(
        exact_b_.data(), exact_u_.data(), padded(n_atoms_), step.scale, step.toward,
        step.toward > 0 ? gram_row(s) : nullptr, step.away, step.away > 0 ? gram_row(a) : nullptr);
    best_ = {found.value, found.index};
    if (!found.tied) return;
    // A tie goes to the lowest candidate, not to the first atom.
    for (int64_t i = found.index + 1; i < n_atoms_; ++i)
      if (b(i) - u(i) == best_.value && candidate(i) < candidate(best_.index)) best_.index = i;
  }

  // Takes an atom into the running maximum.
  void see(int64_t atom) {
    const double c = b(atom) - u(atom);
    if (c > best_.value || (c == best_.value && candidate(atom) < candidate(best_.index)))
      best_ = {c, atom};
  }

  // [contenders_, atom_rows_] of float64 products, row by row or column by column, whichever is
  // fewer calls.
  const double* exact_block() {
    const size_t m = contenders_.size(), width = atom_rows_.size();
    double* block = block_.reserve(int64_t(m * width));
    if (m <= width) {
      for (size_t i = 0; i < m; ++i)
        exact_products(atom_rows_, rows_[contenders_[i]], block + i * width);
      return block;
    }
    contender_rows_.clear();
    for (const int64_t k : contenders_) contender_rows_.push_back(rows_[k]);
    double* of_row = of_row_.reserve(int64_t(m));
    for (size_t j = 0; j < width; ++j) {
      exact_products(contender_rows_, atom_rows_[j], of_row);
      for (size_t i = 0; i < m; ++i) block[i * width + j] = of_row[i];
    }
    return block;
  }

  void exact_products(const std::vector<const T*>& rows, const T* x, double* out) {
    dot_kernels<T>(*kernels_).few(rows.data(), int64_t(rows.size()), x, d_, out);
  }

  const T* const* rows_ = nullptr;
  const T* query_ = nullptr;
  int64_t n_ = 0, d_ = 0;
  Support* support_ = nullptr;
  const Kernels* kernels_ = nullptr;

  QuantizedPool<T> pool_;
  ColumnCache<float> columns_;  // estimates
  double highest_ = 0;          // estimate of a candidate that is no atom
  double drift_ = 0;            // bounds how far rounding has moved the estimates of u
  Aligned<float> b_, u_;        // of every candidate; b is -infinity for those that are atoms
  Aligned<int64_t> found_;      // candidates

  std::vector<int64_t> atom_of_;  // of each candidate, kNone: none
  int64_t n_atoms_ = 0;
  std::vector<int64_t> candidates_;        // of each atom
  std::vector<double> exact_b_, exact_u_;  // of each atom, padded
  std::vector<GramRow> gram_;              // of each atom, and of more in queries before
  ArgMax best_{0, 0};
  std::vector<int64_t> movers_;     // atoms that a step went toward or away from
  std::vector<int64_t> place_;      // of each atom among them, kNone: none
  std::vector<SupportMove> moves_;  // every step, in terms of movers_

  std::vector<int64_t> contenders_, missing_;
  std::vector<const T*> atom_rows_, contender_rows_;
  AlignedDoubles block_, of_row_;
};

}  // namespace hullft
