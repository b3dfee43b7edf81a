"""Mistakes in SIFT."""

from cuda_sim.mutants import RACE, WRONG, Mutant

SIFT = "cuda/sift_block.cuh"

SIFT_MUTANTS = {
    "picks of a part where those of the first lie": Mutant(
        "sift",
        "cuda/sift.cu",
        "out.picks + rows",
        "out.picks",
        "plain",
        "sift_parts",
        WRONG,
    ),
    "a pick that does not condition": Mutant(
        "sift",
        SIFT,
        "for (int j = 0; j < i; ++j)\n      c =",
        "for (int j = 1; j < i; ++j)\n      c =",
        "plain",
        "sift",
        WRONG,
    ),
    "no barrier before the posterior moves on": Mutant(
        "sift",
        SIFT,
        "x_.left[i] = S(left_);\n    __syncthreads();",
        "x_.left[i] = S(left_);",
        "race",
        "sift_targets",
        RACE,
    ),
    "a pick counted at each of its places": Mutant(
        "sift",
        SIFT,
        "first = first && j >= i;",
        "first = first && j >= 0;",
        "plain",
        "sift_repeats",
        WRONG,
    ),
    "equal counts by the order of the picks": Mutant(
        "sift",
        SIFT,
        "x_.picks[j] < x_.picks[i]);",
        "j < i);",
        "plain",
        "sift",
        WRONG,
    ),
    "vectors where targets are not aligned": Mutant(
        "sift",
        "cuda/sift.cu",
        "target_bytes % 16 != 0",
        "target_bytes % 2 != 0",
        "asan",
        "sift_targets",
        "misaligned address",
    ),
    "columns of another query": Mutant(
        "sift",
        "cuda/sift.cu",
        "query * problem.n_select * problem.pool.width",
        "query * problem.pool.width",
        "race",
        "sift",
        RACE,
    ),
    "squares that overflow unnoticed": Mutant(
        "sift",
        SIFT,
        "if (!finite(best.value)) return fail(out);",
        "if (best.index >= n_) return fail(out);",
        "plain",
        "sift_failures",
        WRONG,
    ),
}
