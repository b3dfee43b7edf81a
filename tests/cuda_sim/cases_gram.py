"""Gram matrices, and the products of a pool with its query."""

import torch

from cuda_sim.checks import case, case_of_values, hull_problem, permutations
from cuda_sim.library import Launch, Library
from problems import DTYPES


def spread(seed: int) -> Launch:
    """A device so large that every tile has a block of its own."""
    return Launch(seed, sms=10_000)


def in_runs(seed: int) -> Launch:
    """A device so small that a block makes a run of tiles."""
    return Launch(seed, sms=1)


def whole_numbers(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    """So small that every product and sum is exact."""
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randint(-9, 10, shape, generator=generator).to(dtype)


def check_gram(
    pool: torch.Tensor,
    query: torch.Tensor,
    gram: torch.Tensor,
    products: torch.Tensor,
) -> None:
    """Of whole numbers: one pool [n, d], its query [d] and what came of them."""
    n = len(pool)
    wide = pool.double()

    assert torch.equal(gram[:n, :n].double(), wide @ wide.T)
    assert torch.equal(products[:n].double(), wide @ query.double())


@case
def gram_ways(library: Library, seed: int) -> None:
    """A block a tile, runs of tiles in a triangle, and runs in squares. Rows of 16-byte vectors,
    rows that end within one, and others; so many slices that every buffer is filled again."""
    for launch in (spread(seed), in_runs(seed)):
        for dtype in DTYPES:
            for candidates, dim, stride in ((1, 3, 3), (37, 300, 300), (64, 70, 72)):
                pool = whole_numbers(2, candidates, stride, dtype=dtype)[..., :dim]
                query = whole_numbers(2, stride, dtype=dtype)[..., :dim]
                gram, products = library.gram(pool, query, launch=launch)

                for b in range(2):
                    check_gram(pool[b], query[b], gram[b], products[b])

    # The last two as benchmarks/gpu/calls.py has them.
    for candidates, dim, sms in (
        (207, 20, 1),
        (255, 20, 1),
        (70, 100, 3),
        (300, 52, 3),
    ):
        pool = whole_numbers(1, candidates, dim, dtype=torch.float32)
        query = whole_numbers(1, dim, dtype=torch.float32)
        gram, products = library.gram(pool, query, launch=Launch(seed, sms=sms))
        check_gram(pool[0], query[0], gram[0], products[0])


@case
def gram_of_sizes(library: Library, seed: int) -> None:
    """Pools of which a query sees a part, rows of one matrix, and a candidate out of range."""
    sizes = torch.tensor([70, 33, 5, 0, -3])
    pool = whole_numbers(5, 70, 24, dtype=torch.float32)
    query = whole_numbers(5, 24, dtype=torch.float32)
    embeddings = whole_numbers(90, 24, dtype=torch.float32)
    candidates = permutations(5, 90)[:, :70].contiguous()
    candidates[1, 60] = 90  # past its size

    for launch in (spread(seed), in_runs(seed)):
        for rows, picked in ((pool, None), (embeddings, candidates)):
            gram, products = library.gram(
                rows, query, candidates=picked, sizes=sizes, launch=launch
            )
            for b in range(3):
                n = int(sizes[b])
                seen = pool[b, :n] if picked is None else rows[picked[b, :n]]
                check_gram(seen, query[b], gram[b], products[b])


@case
def gram_of_a_shared_pool(library: Library, seed: int) -> None:
    """Its queries are further rows: tiles of their own, panels below a triangle and below squares,
    several each way. Copies of the pool have the same bits."""
    for launch in (spread(seed), in_runs(seed)):
        for dtype in DTYPES:
            pools, query = hull_problem(5, 40, 30, 20, dtype)
            copies = pools[:1].repeat(40, 1, 1)
            gram, products = library.gram(pools[0], query, launch=launch)
            grams, of_copies = library.gram(copies, query, launch=launch)

            assert torch.equal(gram.expand(40, -1, -1), grams)
            assert torch.equal(products, of_copies)

    for candidates in (16, 207, 256):
        pool = whole_numbers(candidates, 20, dtype=torch.float32)
        query = whole_numbers(136, 20, dtype=torch.float32)
        gram, products = library.gram(pool, query, launch=in_runs(seed))
        check_gram(pool, query[0], gram[0], products[0])

        assert torch.equal(products.double(), query.double() @ pool.double().T)


@case
def gram_of_long_rows(library: Library, seed: int) -> None:
    """Shares that end within a row and one that rows end within; few rows, whose slices several
    fill a slab, and more than a warp has tiles for; a shared pool; sizes."""
    for dtype, candidates, stride in (
        (torch.float32, 7, 2304),
        (torch.float32, 90, 1100),
        (torch.bfloat16, 37, 2300),
        (torch.float64, 40, 1100),
    ):
        pool = whole_numbers(2, candidates, stride, dtype=dtype)[..., : stride - 3]
        query = whole_numbers(2, stride, dtype=dtype)[..., : stride - 3]
        sizes = torch.tensor([candidates, 5])
        options = {"share": 1024, "launch": Launch(seed)}
        gram, products = library.gram(pool, query, sizes=sizes, **options)

        for b, n in enumerate(sizes):
            check_gram(pool[b, :n], query[b], gram[b], products[b])

        gram, products = library.gram(pool[0], query, **options)
        for b in range(2):
            check_gram(pool[0], query[b], gram[0], products[b])


@case_of_values
def sums_of_long_rows(library: Library, seed: int) -> None:
    """A tenth of what a block adds up of rows of 10^9 numbers: sums of 16 slices in float32, and
    those in float64, whose error does not grow. float64 adds up the sums of 512 blocks."""
    columns = 10**9 // 512 // 10
    for rows in (
        torch.randn(3, columns, generator=torch.Generator().manual_seed(seed)),
        torch.full((3, columns), 0.1),
    ):
        exact = rows[:2].double() @ rows[:2].double().T
        gram, products = library.gram(
            rows[:2], rows[2:], share=200_000, launch=Launch(seed)
        )
        largest = exact.diagonal().max()

        assert (gram[0] - exact).abs().max() <= 1e-6 * largest
        of_queries = products - rows[2:].double() @ rows[:2].double().T
        assert of_queries.abs().max() <= 1e-6 * largest


def nearly_orthogonal(count: int, dim: int) -> torch.Tensor:
    """Signs whose products cancel in a slice, and a little more: the products with lo are left."""
    signs = torch.ones(1, 1)
    for _ in range(4):
        above = torch.cat([signs, signs], dim=1)
        below = torch.cat([signs, -signs], dim=1)
        signs = torch.cat([above, below])

    generator = torch.Generator().manual_seed(7)
    little = torch.rand(count, dim, generator=generator) * 2**-12
    return (1 + 307 / 1024) * signs.repeat(3, 10)[:count, :dim] + little


@case
def gram_bits(library: Library, seed: int) -> None:
    """Both ways have the same bits, equal rows tie, in the products too, and what TF32 alone would
    lose of each row is there."""
    rows = nearly_orthogonal(41, 152)
    rows[32] = rows[5]
    pool = rows[None, :40].contiguous()
    query = rows[40:]
    exact = rows.double() @ rows.double().T
    expected = library.gram(pool, query, launch=spread(seed))

    for launch in (spread(seed), in_runs(seed)):
        gram, products = library.gram(pool, query, launch=launch)

        assert torch.equal(gram, expected[0])
        assert torch.equal(products, expected[1])
        assert torch.equal(gram[0, 32], gram[0, 5])
        assert products[0, 32] == products[0, 5]

        error = (gram[0] - exact[:40, :40]).abs()

        assert error.max() <= 2e-6 * exact.diagonal().max()


@case
def gram_plan(library: Library, seed: int) -> None:
    """One pool of 200 has a block for each tile, 64 have four each, of which an SM runs two, and
    1,000 have two each. The calls on a GPU make runs."""
    for pools, candidates, dim, sms, warp_tiles in (
        (1, 200, 384, 132, 0),
        (64, 200, 384, 132, 3),
        (1000, 200, 384, 132, 6),
        (1, 200, 384, 2, 3),
        (64, 70, 100, 132, 1),
        (1, 70, 100, 3, 1),
        (40, 300, 52, 132, 4),
        (1, 300, 52, 3, 4),
    ):
        assert library.warp_tiles(pools, candidates, dim, sms) == warp_tiles


@case_of_values
def products_of_long_rows(library: Library, seed: int) -> None:
    """Of a vanilla selection, from Gram matrices and without, and of a step: equal entries, which
    float32 alone would add up with an error that grows with their number."""
    pool, query = torch.zeros(1, 2, 10**6), torch.full((1, 10**6), 0.05)
    pool[:, 0] = 0.1
    for gram in (True, False):
        launch = Launch(seed, gram)
        answer = library.frank_wolfe(pool, query, 2, max_iter=0, launch=launch)

        assert abs(answer.gap / 5000 - 1) <= 1e-6

    step = library.lmo(pool, pool[:, 0], query, launch=Launch(seed))

    assert abs(step.correlation / 5000 - 1) <= 1e-6
