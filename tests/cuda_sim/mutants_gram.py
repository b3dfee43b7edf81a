"""Mistakes in the Gram kernels."""

from cuda_sim.mutants import OUTSIDE, RACE, WRONG, Mutant

MISALIGNED = "misaligned address"


def tiles(
    old: str,
    new: str,
    case: str = "gram_ways",
    kind: str = "plain",
    report: str = WRONG,
    file: str = "gram.cu",
) -> Mutant:
    """In the kernels whose blocks make a tile each."""
    return Mutant("gram", f"cuda/{file}", old, new, kind, case, report)


def runs(
    old: str,
    new: str,
    case: str = "gram_ways",
    kind: str = "plain",
    report: str = WRONG,
    file: str = "gram_blocks.cu",
) -> Mutant:
    """In the kernel whose blocks make runs of tiles."""
    return Mutant("gram_blocks", f"cuda/{file}", old, new, kind, case, report)


SLICE = "gram_slice.cuh"
TILE = "gram_tile.cuh"
WAIT = "wait_for_groups<kStages - 2>();"
LO_HI = "multiply<T>(a.lo, b.hi, lo_hi);"

GRAM_MUTANTS = {
    "barrier in a divergent branch": tiles(
        "sums);\n    __syncthreads();",
        "sums);\n    if (group) __syncthreads();",
        report="divergent barrier",
    ),
    "no barrier before the next chunk": tiles(
        "sums);\n    __syncthreads();", "sums);", kind="race", report=RACE
    ),
    "a share of d forgotten": tiles("int s = 0; s < kGroups", "int s = 1; s < kGroups"),
    "no barrier before the slices are added up": tiles(
        "+ warp, t);\n    __syncthreads();", "+ warp, t);", kind="race", report=RACE
    ),
    "one buffer for the slices of two passes": tiles(
        "half = 1 - half", "half = 0", kind="race", report=RACE
    ),
    "vectors where rows are not aligned": tiles(
        "pool.vectors && start + kSlice<T>",
        "start + kSlice<T>",
        kind="asan",
        report=MISALIGNED,
    ),
    "a vector past d": tiles(
        "start + kSlice<T> <= pool.d", "start < pool.d", kind="asan", report=OUTSIDE
    ),
    "two columns of a fragment swapped": tiles("2 * t + c % 2", "2 * t + 1 - c % 2"),
    "a slice of another warp": tiles(
        "(slice + s * kWarps)", "(slice + s)", "gram_bits"
    ),
    "two words of a fragment swapped": tiles(
        "w % 2 * kRows + row", "w % 2 + 2 * row", file=SLICE
    ),
    "only one product with lo": tiles(LO_HI, "", "gram_bits", file=SLICE),
    "both products with lo in one sum": tiles(
        LO_HI, LO_HI.replace("lo_hi", "hi_lo"), "gram_bits", file=SLICE
    ),
    "hi with all its bits": tiles(
        "(x + 0x1000u) & kTf32Mask", "x + 0x1000u", "gram_bits", file=SLICE
    ),
    "one row too many": tiles(
        "if (i < width)\n", "if (i <= width)\n", "gram_ways", "asan", OUTSIDE, TILE
    ),
    "no mirror image": tiles("if (i < j &&", "if (i < 0 &&", file=TILE),
    "a query that is no row": tiles(
        "k == pool.width && p.query.base", "false", file=TILE
    ),
    "products only of a pool that is seen whole": runs(
        "|| is_query)", "|| (is_query && first < n))", "gram_of_sizes", file=TILE
    ),
    "no wait for the copies": runs(WAIT, ""),
    "a wait for one group too few": runs(WAIT, WAIT.replace("2", "1")),
    "a group that is never closed": runs("close_group();\n    tiles.add", "tiles.add"),
    "no barrier after the wait": runs(
        f"{WAIT}\n    __syncthreads();", WAIT, kind="race", report=RACE
    ),
    "a slab filled while it is read": runs(
        "[(stage + kStages - 1) % kStages]", "[stage]"
    ),
    "a copy of what is not aligned": runs(
        "pool.vectors && start", "start", report=MISALIGNED
    ),
    "a copy past d": runs(
        "start + kVector<T> <= pool.d", "start < pool.d", kind="asan", report=OUTSIDE
    ),
    "the rows of the first tile for all tiles": runs(
        "if (row_[k] != loaded)", "if (loaded < 0)"
    ),
    "no barrier before the products reuse the slabs": runs(
        "__syncthreads();  // all have read the last slab",
        "",
        kind="race",
        report=RACE,
    ),
    "no warp barrier before the next tile is written": runs(
        "__syncwarp();  // all have read the tile before", "", kind="race", report=RACE
    ),
    "a mirror image that is not one": runs(
        "row + j, products[j][i]", "row + j, products[i][j]"
    ),
    "a square on the diagonal": runs("square.row + side_", "square.row"),
    "the first rows of a square for all its runs": runs(
        "(rows_ + first_row_ + slot - side_)", "(rows_ + slot - side_)"
    ),
    "a shared pool with the products of one query": Mutant(
        "plan",
        "cuda/plan.cu",
        "plan.query_row = plan.warp && n_pools(p.pool, p.batch) == p.batch;",
        "plan.query_row = plan.warp;",
        "plain",
        "fw_parts",
        WRONG,
    ),
}
