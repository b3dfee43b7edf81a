"""Mistakes in what the solvers share: reductions, kNN and LMO."""

from cuda_sim.mutants import RACE, WRONG, Mutant

PARTS_MUTANTS = {
    "no barrier after a reduction": Mutant(
        "knn",
        "cuda/reduce.cuh",
        "scratch.values[w], scratch.indices[w]);\n  __syncthreads();",
        "scratch.values[w], scratch.indices[w]);",
        "race",
        "knn",
        RACE,
    ),
    "threads that leave early": Mutant(
        "lmo",
        "cuda/lmo.cu",
        "const S* c = products",
        "if (me.thread >= 96) return;\n  const S* c = products",
        "plain",
        "lmo",
        "divergent barrier|exited",
    ),
    "a mask that leaves lanes out": Mutant(
        "knn",
        "cuda/reduce.cuh",
        "value += __shfl_xor_sync(kFullWarp, value, lanes);",
        "value += __shfl_xor_sync(0x7fffffffu, value, lanes);",
        "plain",
        "knn",
        "warp mask leaves out its caller",
    ),
    "a tie between lanes the wrong way": Mutant(
        "knn",
        "cuda/reduce.cuh",
        "__reduce_min_sync(kFullWarp, best ? uint32_t(mine.index) : uint32_t(kNoIndex))",
        "__reduce_max_sync(kFullWarp, best ? uint32_t(mine.index) : 0)",
        "plain",
        "knn",
        WRONG,
    ),
    "a way by its absolute length": Mutant(
        "lmo",
        "core/frank_wolfe.h",
        "double(larger(square, other_square))",
        "double(square == square || other_square == square)",
        "plain",
        "lmo_scaled",
        WRONG,
    ),
}
