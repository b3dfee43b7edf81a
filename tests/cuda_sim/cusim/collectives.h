// Barriers of the block and operations of the warp: who waits, who is woken, what is an error.
#pragma once

#include <cmath>
#include <type_traits>

#include "fiber.h"

namespace cusim {

inline Vote block_sync(int predicate, const char* what, int line) {
  Fiber& me = *sim.current;
  me.what = what, me.line = line;
  Vote& vote = sim.votes[sim.epoch & 1];
  vote.count += predicate != 0;
  vote.all &= predicate != 0;
  vote.any |= predicate != 0;
  me.state = kAtBarrier;
  ++sim.n_arrived;
  switch_to_main(false);
  return vote;
}

inline void start_epoch() {
  ++sim.epoch;
  sim.votes[sim.epoch & 1] = Vote{};
}

inline void release_block() {
  const Fiber* first = nullptr;
  for (const Fiber& f : sim.fibers) {
    if (f.state == kExited) {
      if (!sim.config.may_exit_early)
        fail("divergent barrier: " + where(f) + ", others wait in a barrier");
      continue;
    }
    if (!first) first = &f;
    if (f.line != first->line || f.what != first->what)
      fail("divergent barrier: " + where(*first) + " but " + where(f));
  }
  for (Fiber& f : sim.fibers)
    if (f.state == kAtBarrier) f.state = kReady;
  sim.n_arrived = 0;
  start_epoch();
  for (unsigned& e : sim.warp_epoch) ++e;
}

inline Fiber* warp_of(const Fiber& f) { return &sim.fibers[size_t(f.warp * kWarpLanes)]; }

inline Fiber& lowest(Fiber* warp, uint32_t mask) { return warp[__builtin_ctz(mask)]; }

// If every live lane that f's mask names waits: computes the results and wakes them.
inline bool finish_warp_op(const Fiber& f) {
  Fiber* warp = warp_of(f);
  const uint32_t need = f.mask & sim.live[f.warp];
  if (f.state != kAtWarpOp || (sim.waiting[f.warp] & need) != need) return false;
  f.result(warp, need);
  sim.waiting[f.warp] &= ~need;
  for (uint32_t m = need; m; m &= m - 1) lowest(warp, m).state = kReady;
  return true;
}

inline void check_warp_op(const Fiber& me) {
  Fiber* warp = warp_of(me);
  if (!(me.mask >> me.lane & 1)) fail("warp mask leaves out its caller: " + where(me));
  // Lanes that wait already must agree on mask and operation, if either names the other.
  for (uint32_t m = sim.waiting[me.warp]; m; m &= m - 1) {
    const Fiber& other = lowest(warp, m);
    const bool same = other.mask == me.mask && other.result == me.result;
    if (!same && (me.mask >> other.lane & 1 || other.mask >> me.lane & 1))
      fail("warp op mismatch: " + where(me) + " but " + where(other));
  }
  const uint32_t gone = me.mask & sim.born[me.warp] & ~sim.live[me.warp];
  if (gone && !sim.config.may_exit_early)
    fail("warp mask names an exited thread: " + where(me) + ", " + where(lowest(warp, gone)));
}

inline void warp_op(uint32_t mask, const void* in, size_t bytes, void* out, int source_lane,
                    WarpResult result, const char* what, int line) {
  Fiber& me = *sim.current;
  me.what = what, me.line = line, me.mask = mask, me.source_lane = source_lane, me.result = result;
  memcpy(me.in, in, bytes);
  me.state = kAtWarpOp;
  check_warp_op(me);
  sim.waiting[me.warp] |= 1u << me.lane;
  if (!finish_warp_op(me) || sim.config.seed) switch_to_main(false);
  memcpy(out, me.out, bytes);
}

// Programmatic dependent launch. The kernel before has ended here, whatever a launch allows: an
// early one fails where a thread ends without waiting, and under the race checker where one touches
// before its wait what the kernel before has touched.
inline void wait_for_kernel_before() { sim.current->has_waited = true; }

inline void exit_thread(Fiber& me) {
  if (!me.has_waited) fail("no wait for the kernel before: " + where(me));
  me.state = kExited;
  ++sim.n_exited;
  sim.live[me.warp] &= ~(1u << me.lane);
  for (uint32_t m = sim.waiting[me.warp]; m; m &= m - 1) {
    const Fiber& other = lowest(warp_of(me), m);
    if (other.mask >> me.lane & 1 && !sim.config.may_exit_early)
      fail("warp mask names an exited thread: " + where(other) + ", " + where(me));
    finish_warp_op(other);
  }
}

// A lane that takes no part reads as NaN bytes.
inline void shuffle_result(Fiber* warp, uint32_t mask) {
  for (uint32_t m = mask; m; m &= m - 1) {
    Fiber& f = lowest(warp, m);
    if (mask >> f.source_lane & 1)
      memcpy(f.out, warp[f.source_lane].in, sizeof f.out);
    else
      memset(f.out, 0xff, sizeof f.out);
  }
}

inline void ballot_result(Fiber* warp, uint32_t mask) {
  uint32_t bits = 0;
  for (int i = 0; i < kWarpLanes; ++i)
    if (mask >> i & 1 && warp[i].in[0]) bits |= 1u << i;
  for (uint32_t m = mask; m; m &= m - 1) memcpy(lowest(warp, m).out, &bits, sizeof bits);
}

// A barrier of the whole warp orders its lanes' memory accesses.
inline void syncwarp_result(Fiber* warp, uint32_t mask) {
  if (mask == sim.live[warp->warp]) ++sim.warp_epoch[warp->warp];
}

template <class Op>
void reduce_result(Fiber* warp, uint32_t mask) {
  uint32_t total = 0;
  bool first = true;
  for (uint32_t m = mask; m; m &= m - 1) {
    uint32_t value;
    memcpy(&value, lowest(warp, m).in, sizeof value);
    total = first ? value : Op()(total, value);
    first = false;
  }
  for (uint32_t m = mask; m; m &= m - 1) memcpy(lowest(warp, m).out, &total, sizeof total);
}

template <class T>
T shuffle(uint32_t mask, T value, int source_lane, const char* what, int line) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>, "shuffles take 1 to 8 bytes");
  T out;
  warp_op(mask, &value, sizeof value, &out, source_lane, shuffle_result, what, line);
  return out;
}

inline unsigned ballot(uint32_t mask, int predicate, const char* what, int line) {
  const unsigned value = predicate != 0;
  unsigned out;
  warp_op(mask, &value, sizeof value, &out, 0, ballot_result, what, line);
  return out;
}

template <class Op>
unsigned reduce(uint32_t mask, unsigned value, const char* what, int line) {
  unsigned out;
  warp_op(mask, &value, sizeof value, &out, 0, reduce_result<Op>, what, line);
  return out;
}

// What a lane has of a tensor core's operands: csrc/cuda/mma.cuh says of which rows and words.
struct Fragments {
  float* c;
  const uint32_t *a, *b;
};

// float64 to float32, toward 0.
inline float cut(double sum) {
  const float nearest = float(sum);
  const bool beyond = std::isfinite(nearest) && std::fabs(double(nearest)) > std::fabs(sum);
  return beyond ? std::nextafter(nearest, 0.0f) : nearest;
}

// The numbers of a word: two of 16 bits, or one that is cut to TF32.
template <class T>
struct WordOf {
  static constexpr int kCount = 4 / int(sizeof(T));
  static float at(uint32_t word, int i) {
    if constexpr (kCount == 2) return to_float(T{uint16_t(word >> 16 * i)});
    word &= ~0x1fffu;
    float value;
    memcpy(&value, &word, sizeof value);
    return value;
  }
};

// A tensor core multiplies exactly and cuts its sums off instead of rounding them.
template <class T>
__attribute__((no_sanitize("thread"))) void mma_result(Fiber* warp, uint32_t) {
  using Word = WordOf<T>;
  constexpr int kDepth = 8 * Word::kCount;
  const Fragments* of_lane[kWarpLanes];
  double a[16][kDepth], b[8][kDepth];
  for (int lane = 0; lane < kWarpLanes; ++lane) {
    memcpy(&of_lane[lane], warp[lane].in, sizeof of_lane[lane]);
    const Fragments& f = *of_lane[lane];
    for (int half = 0; half < 2; ++half)
      for (int i = 0; i < Word::kCount; ++i) {
        const int k = (lane % 4 + half * 4) * Word::kCount + i;
        a[lane / 4][k] = double(Word::at(f.a[half * 2], i));
        a[lane / 4 + 8][k] = double(Word::at(f.a[half * 2 + 1], i));
        b[lane / 4][k] = double(Word::at(f.b[half], i));
      }
  }
  for (int row = 0; row < 16; ++row)
    for (int column = 0; column < 8; ++column) {
      float& c = of_lane[row % 8 * 4 + column / 2]->c[row / 8 * 2 + column % 2];
      double sum = double(c);
      for (int k = 0; k < kDepth; ++k) sum += a[row][k] * b[column][k];
      c = cut(sum);
    }
}

template <class T>
void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], int line) {
  const Fragments mine{c, a, b};
  const Fragments* in = &mine;
  const void* out;
  warp_op(~0u, &in, sizeof in, &out, 0, mma_result<T>, "mma", line);
}

}  // namespace cusim
