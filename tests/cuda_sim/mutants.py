"""Mistakes that the checks must notice: at least one for each kernel, each detector of the
simulator, and each check that ever noticed one."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One wrong edit in one source, and the checks that must report it in one build."""

    unit: str
    file: str
    right: str
    wrong: str
    checks: tuple[str, ...]
    kind: str = "plain"
    report: str = "AssertionError"


RACE = "race on|read of uninitialised"
OUTSIDE = "use-after-poison"
"""Of a device buffer: driver.h poisons what surrounds one."""
MISALIGNED = "misaligned address"
EXITED = "divergent barrier|exited"

MUTANTS = {
    # Gram matrices
    "no mirror image": Mutant(
        "gram",
        "cuda/gram_tile.cuh",
        "if (j < i && i < width)",
        "if (j < i && i < 0)",
        ("gram_ways",),
    ),
    "a vector past d": Mutant(
        "gram",
        "cuda/gram.cu",
        "start + kSlice<T> <= pool.d",
        "start < pool.d",
        ("gram_ways",),
        "asan",
        OUTSIDE,
    ),
    "one query for all that share a pool": Mutant(
        "gram",
        "cuda/gram_tile.cuh",
        "(b * p.queries + query) * p.query.stride",
        "b * p.queries * p.query.stride",
        ("gram_of_a_shared_pool",),
    ),
    "panels of queries that overlap": Mutant(
        "gram_blocks",
        "cuda/gram_blocks.cu",
        "int(panel / grid.panels_across) * grid.panel_rows",
        "int(panel / grid.panels_across)",
        ("gram_of_a_shared_pool",),
    ),
    "no barrier after the wait for copies": Mutant(
        "gram_blocks",
        "cuda/gram_blocks.cu",
        "wait_for_groups<kStages - 2>();\n    __syncthreads();",
        "wait_for_groups<kStages - 2>();",
        ("gram_ways",),
        "race",
        RACE,
    ),
    "a block that has an SM alone, and all its speed": Mutant(
        "plan",
        "cuda/plan.cu",
        "kBlocksInTimeOfOne = 1.75",
        "kBlocksInTimeOfOne = 1",
        ("gram_plan",),
    ),
    "a share of long rows forgotten": Mutant(
        "long_rows",
        "cuda/long_rows.cu",
        "int s = me.warp; s <",
        "int s = me.warp + 1; s <",
        ("gram_of_long_rows",),
    ),
    "no zeros where a strip has no rows": Mutant(
        "gram_blocks",
        "cuda/gram_blocks.cu",
        "i < kStages * kMostRows",
        "i < problem.queries * 0",
        ("gram_of_long_rows",),
        "race",
        RACE,
    ),
    "a long residual without a row's weight": Mutant(
        "long_rows",
        "cuda/long_rows.cu",
        "left[e] -= weights[i] * row[e]",
        "left[e] -= (0 * weights[i] + 1) * row[e]",
        ("corrective_long_rows",),
    ),
    # Products of rows
    "a row without its product": Mutant(
        "correlate",
        "cuda/correlate.cu",
        "multiply_rows(rows, int(first), int(last)",
        "multiply_rows(rows, int(first) + 1, int(last)",
        ("knn", "lmo"),
    ),
    "a residual that is the query": Mutant(
        "correlate",
        "cuda/correlate.cu",
        "value - widen_to<S>(x[i])",
        "value - 0 * widen_to<S>(x[i])",
        ("lmo",),
    ),
    # Nearest neighbours, one step
    "no barrier after a reduction": Mutant(
        "knn",
        "cuda/knn.cu",
        "picks[round] = last.index;\n    __syncthreads();",
        "picks[round] = last.index;",
        ("knn",),
        "race",
        RACE,
    ),
    "a residual that overflows unnoticed": Mutant(
        "knn",
        "cuda/knn.cu",
        "known = finite(static_cast<const S*>(out.residual)[query])",
        "known = true",
        ("knn_overflow",),
    ),
    "threads that leave early": Mutant(
        "lmo",
        "cuda/lmo.cu",
        "const S* c = products",
        "if (me.thread >= 96) return;\n  const S* c = products",
        ("lmo",),
        report=EXITED,
    ),
    "a way by its absolute length": Mutant(
        "lmo",
        "core/frank_wolfe.h",
        "double(larger(square, other_square))",
        "double(square == square || other_square == square)",
        ("lmo_scaled",),
    ),
    # Counts
    "a negative number as if it were positive": Mutant(
        "integerize",
        "cuda/reduce.cuh",
        "bits >> 63 ? ~bits :",
        "bits >> 63 ? bits :",
        ("integerize",),
    ),
    "the upper half of a gain alone": Mutant(
        "integerize",
        "cuda/reduce.cuh",
        "upper == top && lower == under}",
        "upper == top}",
        ("counts_of_close_gains",),
    ),
    "swaps by an absolute gain": Mutant(
        "integerize",
        "cuda/warp_integerize.cuh",
        "kMinImprovement * warp_best(largest_square).value *",
        "kMinImprovement * (1 + 0 * warp_best(largest_square).value) *",
        ("integerize_scaled",),
    ),
    "no warp barrier after a move": Mutant(
        "integerize",
        "cuda/warp_integerize.cuh",
        "}\n    __syncwarp();\n  }\n\n  const Rows& rows_;",
        "}\n  }\n\n  const Rows& rows_;",
        ("integerize",),
        "race",
        RACE,
    ),
    # Frank-Wolfe by a block
    "state that is never set": Mutant(
        "frank_wolfe",
        "cuda/frank_wolfe.cu",
        "me_.n_threads) x_.u[k] = 0;",
        "me_.n_threads) x_.u[0] = 0;",
        ("fw_gram",),
        "race",
        RACE,
    ),
    "a vector past the row": Mutant(
        "frank_wolfe",
        "cuda/rows.cuh",
        "vectors ? d / kStep * kStep : 0",
        "vectors ? (d + kStep - 1) / kStep * kStep : 0",
        ("fw_full_support_tail",),
        "asan",
        OUTSIDE,
    ),
    "a tie to the highest index": Mutant(
        "frank_wolfe",
        "cuda/reduce.cuh",
        "__reduce_min_sync(kFullWarp, has ? uint32_t(index) : uint32_t(kNoIndex))",
        "__reduce_max_sync(kFullWarp, has ? uint32_t(index) : 0u)",
        ("fw_ties",),
    ),
    "no products of the last rows": Mutant(
        "correlate",
        "cuda/correlate.cu",
        "n - first > kRowsPerBlock ? first + kRowsPerBlock : n",
        "n - first > kRowsPerBlock ? first + kRowsPerBlock : first",
        ("fw_rounds",),
    ),
    "a square lost between rounds": Mutant(
        "fw_corrective",
        "cuda/block_solver.cuh",
        "qq_ = pause_->qq;",
        "qq_ = 0;",
        ("fw_rounds",),
    ),
    "a solve that goes on after its end": Mutant(
        "frank_wolfe",
        "cuda/block_solver.cuh",
        "if (pause_->round != plan_.round - 1) return;",
        "if (plan_.rounds < 0) return;",
        ("fw_rounds",),
    ),
    # Frank-Wolfe by a warp
    "products read before the wait": Mutant(
        "fw_warp",
        "cuda/fw_warp.cuh",
        "if (!nothing) read_inputs();\n",
        "if (!nothing) read_inputs(), load_products();\n",
        ("fw_warp",),
        "race",
        "race on workspace",
    ),
    "no wait where there is nothing to solve": Mutant(
        "fw_warp",
        "cuda/fw_warp.cuh",
        "wait_for_kernel_before();",
        "if (!nothing) wait_for_kernel_before();",
        ("fw_ragged",),
        report="no wait for the kernel before",
    ),
    "a constant load of what the kernel before writes": Mutant(
        "fw_warp",
        "cuda/fw_warp.cuh",
        "to[i] = from[i * kWarp];",
        "to[i] = __ldg(from + i * kWarp);",
        ("fw_warp",),
        "race",
        "constant load of workspace",
    ),
    "a lane mask that leaves one out": Mutant(
        "fw_warp",
        "cuda/fw_warp.cuh",
        "__shfl_sync(kFullWarp, u, k)",
        "__shfl_sync(kFullWarp >> 1, u, k)",
        ("fw_warp",),
        report="warp mask leaves out its caller",
    ),
    "a weight that does not follow its atom": Mutant(
        "fw_warp",
        "cuda/fw_warp.cuh",
        "(moved >> i & 1 ? by : S(0))",
        "(moved >> i & 0 ? by : S(0))",
        ("fw_warp",),
    ),
    # The corrective solver
    "a rotation that leaves the target": Mutant(
        "fw_corrective",
        "cuda/fw_corrective.cuh",
        "rotate(rotation, x_.y[j], x_.y[j + 1]);",
        "",
        ("corrective_kinds",),
    ),
    "no warp barrier after a rotation": Mutant(
        "fw_corrective",
        "cuda/fw_corrective.cuh",
        "      }\n      __syncwarp();\n      for (int i = me_.lane; i <= j;",
        "      }\n      for (int i = me_.lane; i <= j;",
        ("corrective_kinds",),
        "race",
        RACE,
    ),
    "a column lost with its row": Mutant(
        "fw_corrective",
        "cuda/fw_corrective.cuh",
        "x_.place[m_] = freed;",
        "x_.place[m_] = 0 * freed;",
        ("corrective_kinds",),
    ),
    "dependence by the rounding of float32": Mutant(
        "fw_corrective",
        "cuda/fw_corrective.cuh",
        "S(rounding_of(plan_))",
        "S(epsilon<float>())",
        ("corrective_spectra",),
    ),
    "a number of the other query": Mutant(
        "fw_tableau",
        "cuda/fw_tableau.cu",
        "first_lane_ + lane % kRows",
        "lane % kRows",
        ("corrective_few_rows",),
    ),
    "a row that leaves as it joined": Mutant(
        "fw_tableau",
        "cuda/fw_tableau.cu",
        "const double sign = joins ? 1 : -1",
        "const double sign = joins ? 1 : 1",
        ("corrective_few_rows",),
    ),
    "a tableau that lacks digits": Mutant(
        "fw_tableau",
        "cuda/fw_tableau.cu",
        "goes_on = is_inexact() && goes_on;",
        "goes_on = is_inexact() && false;",
        ("corrective_condition",),
    ),
    "no warp barrier after a row is shown": Mutant(
        "fw_tableau",
        "cuda/fw_tableau.cu",
        "    __syncwarp();\n    const double mine",
        "    const double mine",
        ("corrective_few_rows",),
        "race",
        RACE,
    ),
    # Gradients
    "directions of dependence left in": Mutant(
        "lstsq_adjoint",
        "cuda/lstsq_adjoint.cu",
        "x(j) -= share * at(i, j);",
        "x(j) -= 0 * share * at(i, j);",
        ("adjoint",),
    ),
    "a column scaled before all have read it": Mutant(
        "lstsq_adjoint",
        "cuda/lstsq_adjoint.cu",
        "body(i, j);\n    sync();",
        "body(i, j);",
        ("adjoint",),
        "race",
        RACE,
    ),
    # SIFT
    "columns of another query": Mutant(
        "sift",
        "cuda/sift.cu",
        "query * problem.n_select * problem.pool.width",
        "query * problem.pool.width",
        ("sift", "sift_targets"),
        "race",
        RACE,
    ),
    "vectors where targets are not aligned": Mutant(
        "sift",
        "cuda/sift.cu",
        "target_bytes % 16 != 0",
        "target_bytes % 2 != 0",
        ("sift_targets",),
        "asan",
        MISALIGNED,
    ),
    "a pick that does not condition": Mutant(
        "sift",
        "cuda/sift_block.cuh",
        "for (int j = 0; j < i; ++j)\n      c =",
        "for (int j = 1; j < i; ++j)\n      c =",
        ("sift", "sift_repeats"),
    ),
    "picks of a part where those of the first lie": Mutant(
        "sift",
        "cuda/sift.cu",
        "out.picks + rows",
        "out.picks",
        ("sift_parts",),
    ),
    "one target of a query without candidates": Mutant(
        "sift",
        "cuda/sift_block.cuh",
        "query_, p_.n_targets, p_.n_select,",
        "query_, 1, p_.n_select,",
        ("sift_empty_targets",),
    ),
    "a precision that overflows unnoticed": Mutant(
        "sift",
        "cuda/sift_block.cuh",
        "if (!finite(best.value)) return fail(out);",
        "if (best.index >= n_) return fail(out);",
        ("sift_failures",),
    ),
    "a square of a covariance": Mutant(
        "sift",
        "core/sift.h",
        "covariance * (covariance * rate)",
        "covariance * covariance * rate",
        ("sift_scaled",),
    ),
    # Adam and accumulation
    "bias correction a step late": Mutant(
        "adam_replay",
        "cuda/adam_replay.cu",
        "done + double(threadIdx.x + 1)",
        "done + double(threadIdx.x)",
        ("adam", "adam_many_steps"),
    ),
    "no barrier before the table is rewritten": Mutant(
        "adam_replay",
        "cuda/adam_replay.cu",
        "AdamStep<R>* steps) {\n  __syncthreads();",
        "AdamStep<R>* steps) {",
        ("adam_many_steps",),
        "race",
        RACE,
    ),
    "words past the end": Mutant(
        "adam_replay",
        "cuda/sweep.cuh",
        "tile + kSweepTile<R> <= numel &&",
        "tile < numel &&",
        ("adam", "adam_many_tensors"),
        "asan",
        OUTSIDE,
    ),
    "a step on the device not advanced": Mutant(
        "adam_replay",
        "cuda/adam_replay.cu",
        "int64_t(with_step.size())",
        "0 * int64_t(with_step.size())",
        ("adam_device_steps",),
    ),
    "a float64 learning rate read as float32": Mutant(
        "adam_replay",
        "cuda/adam_replay.cu",
        "read_value(call.device_lr, call.wide_lr)",
        "read_value(call.device_lr, false)",
        ("adam_device_lr",),
    ),
    "one learning rate for all tensors": Mutant(
        "adam_replay",
        "cuda/adam_replay.cu",
        "options.lr *= entry.lr_scale;",
        "options.lr *= entry.lr_scale > 0;",
        ("adam", "adam_device_lr"),
    ),
    "the number of steps on the device not read": Mutant(
        "adam_replay",
        "cuda/adam_replay.cu",
        "repeats_of(call.repeats, call.device_repeats)",
        "call.repeats",
        ("adam_device_repeats",),
    ),
    "the same random bits for every thread": Mutant(
        "adam_replay",
        "cuda/adam_replay.cu",
        "rounding_words(key, pieces.at(0) / kRoundingGroup)",
        "rounding_words(key, pieces.tile / kRoundingGroup)",
        ("adam_stochastic",),
    ),
    "moments of any size": Mutant(
        "adam_replay",
        "cuda/adam_directions.cuh",
        "(size < kLargestMoment) &",
        "(size == size) &",
        ("adam_directions",),
    ),
    "a cache read that may hold NaN": Mutant(
        "accumulate",
        "cuda/accumulate.cu",
        "if (beta != R(0)) {",
        "if (true) {",
        ("accumulate",),
    ),
}
