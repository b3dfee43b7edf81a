"""The benchmarks' own parts, and one run of the small ones at sizes that prove nothing."""

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks import (
    bench_selection,
    bench_simplex,
    compare,
    loops,
    peers,
    report,
    timing,
)
from benchmarks.adapting import Adapting, Case
from benchmarks.passages import TrigramEmbedder
from benchmarks.pools import DISTINCT, distinct_pools, problem, tiled
from benchmarks.recorder import Comparison, Recorder
from benchmarks.simplex_problems import problem as simplex_problem
from benchmarks.timing import Pace, measure, measure_in_turns
from transformers import GPT2Config, GPT2LMHeadModel

import hullft_ops
from forked import forked, status_of
from hullft_ops import reference

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


class SlowingMachine:
    """A clock, and calls that take ten times as long from its first second on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(timing, "perf_counter", lambda: self.now)

    def call(self, seconds: float) -> Callable[[], None]:
        def take() -> None:
            is_slow = self.now >= 1
            self.now += 10 * seconds if is_slow else seconds

        return take


def test_calls_in_turns_share_what_slows_the_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = SlowingMachine(monkeypatch)
    ours = machine.call(0.05)
    peer = machine.call(0.1)
    pace = Pace(seconds=0.5, min_rounds=9, max_rounds=100)

    seconds_of_peer = measure(peer, pace)
    seconds_of_ours = measure(ours, pace)

    assert seconds_of_peer / seconds_of_ours < 20 / 9

    machine.now = 0.0
    seconds, ratio = measure_in_turns(ours, peer, pace)

    assert ratio == pytest.approx(2)
    assert seconds == pytest.approx(1.0)


def recorder_of(comparison: Comparison) -> Recorder:
    return Recorder(comparison, CPU, Pace(0.0, 2, 2))


def work() -> None:
    sum(range(100))


def test_a_recorder_compares_with_nothing_before_ours() -> None:
    comparison = Comparison("selection", "B1")
    recorder = recorder_of(comparison)

    with pytest.raises(RuntimeError, match="ours must be timed before"):
        recorder.peer("a peer", work)

    recorder.ours(work)
    recorder.peer("scaled", work, scale=1e6)
    once = comparison.seconds
    recorder.ours(work, calls=1000)

    assert comparison.ratios["scaled"] > 1e4
    assert comparison.seconds < once / 10
    assert not recorder.has_library("no_such_library")
    assert comparison.line().endswith("no_such_library is not installed")


def test_pools_of_the_real_size_are_the_real_ones_and_others_keep_their_geometry(
    golden: dict[str, torch.Tensor],
) -> None:
    """But for two queries that are rows of their pools; the last pool is random."""
    pool, query = distinct_pools(200, 384)
    similarity = torch.einsum("bkd,bd->bk", golden["pool"], golden["query"])
    is_apart = similarity.max(-1).values < 1 - 1e-6
    nearest_first = torch.einsum("bkd,bd->bk", pool, query)
    expected = similarity[is_apart].sort(descending=True).values

    assert len(pool) == DISTINCT == is_apart.sum() + 1
    assert (nearest_first[:-1] - expected).abs().max() < 1e-6

    selection = hullft_ops.fw_select(pool, query, 50)

    assert selection.num_iter[:-1].tolist() == [250] * (DISTINCT - 1)
    assert selection.support_size[-1] == 50

    larger, larger_query = distinct_pools(300, 512)
    nearest_first = torch.einsum("bkd,bd->bk", larger, larger_query)

    assert larger.shape == (DISTINCT, 300, 512)
    assert (larger.norm(dim=-1) - 1).abs().max() < 1e-6
    assert (nearest_first.diff(dim=-1) <= 1e-6).all()

    repeated = tiled(query, DISTINCT + 3)

    assert torch.equal(repeated[DISTINCT:], query[:3])


def test_numpy_peers_select_and_round_as_the_reference() -> None:
    pools, queries = distinct_pools(60, 384)
    for pool, query in zip(pools[:3].double(), queries[:3].double(), strict=True):
        expected = reference.fw_select(pool, query, 20)
        selection = peers.numpy_select(pool.numpy(), query.numpy(), 20)

        assert selection.indices.tolist() == expected.indices.tolist()
        assert selection.counts.tolist() == expected.counts.tolist()

        support = pool.numpy()[selection.indices]
        counts = peers.numpy_integerize_gram(
            support,
            query.numpy(),
            selection.weights,
            20,
        )

        assert counts.tolist() == expected.counts.tolist()


@pytest.mark.parametrize("n_select", [1, 4, 20])
def test_torch_peer_selects_a_batch_as_the_reference(n_select: int) -> None:
    pools, queries = distinct_pools(60, 384)
    pools = pools.double()
    queries = queries.double()
    queries[1] = pools[1, 7]  # at its goal from the start
    pools[2, 1:] = pools[2, :1]  # nowhere to go
    queries[3] = 0.25 * pools[3, 2] + 0.75 * pools[3, 9]
    selections = peers.torch_select(pools, queries, n_select)

    for pool, query, selection in zip(pools, queries, selections, strict=True):
        expected = reference.fw_select(pool, query, n_select)

        assert selection.indices.tolist() == expected.indices.tolist()
        assert selection.counts.tolist() == expected.counts.tolist()

        error = selection.weights - expected.weights.numpy()

        assert np.abs(error).max() < 1e-9


@pytest.mark.parametrize("wrong", [{"max_iter": 3}, {"n_select": 4}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_torch_peer_that_computes_something_else_is_noticed(
    dtype: torch.dtype, wrong: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = bench_selection.Case(2, 30, n_select=5)
    pool, query = problem(case, CPU)
    recorder = recorder_of(Comparison("selection", str(case)))
    recorder.ours(lambda: None)
    bench_selection.time_gram(case, recorder, pool, query)
    right = peers.torch_select

    def selected(x: torch.Tensor, q: torch.Tensor, n: int) -> list[peers.PeerSelection]:
        options = {"n_select": n}
        if x.dtype == dtype:
            options |= wrong

        return right(x, q, **options)

    monkeypatch.setattr(peers, "torch_select", selected)

    with pytest.raises(AssertionError):
        bench_selection.time_gram(case, recorder, pool, query)


@pytest.mark.parametrize("is_shared", [False, True])
@pytest.mark.parametrize("kind", ["positive", "text"])
def test_fista_ends_at_its_goal(kind: str, is_shared: bool) -> None:
    """With the rows, and with Gram matrices."""
    pool, query = simplex_problem(kind, 2)
    if is_shared:
        pool = pool[0]

    exact = hullft_ops.simplex_lstsq(pool, query).residual.square()
    weights = peers.torch_fista(pool, query, 1.001 * exact)

    assert (weights >= 0).all()
    assert (weights.sum(-1) - 1).abs().max() < 1e-12

    squared = (query - peers.times(weights, pool)).square().sum(1)

    assert (squared <= 1.001 * exact).all()
    assert (squared >= (1 - 1e-9) * exact).all()


@pytest.mark.parametrize("scale", [0.999, 1.001])
@pytest.mark.parametrize("solver", ["simplex_lstsq", "nnls"])
def test_an_exact_peer_that_computes_something_else_is_noticed(
    solver: str, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = bench_simplex.Case("positive", 2, solver=solver)
    recorder = recorder_of(Comparison("simplex", str(case)))
    right = peers.scipy_lstsq

    def solved(*arguments: Any, **options: Any) -> torch.Tensor:
        weights = right(*arguments, **options)
        weights[:, weights.argmax(1)] *= scale
        return weights

    monkeypatch.setattr(peers, "scipy_lstsq", solved)

    with pytest.raises(AssertionError):
        bench_simplex.test_simplex(case, recorder, CPU)


PASSAGES = [[1, 2, 3, 4], [9, 8, 7]]
COUNTS = [3, 1]
LOOPS = {
    "padded": partial(loops.padded_cloning_finetune, max_length=16),
    "torch": partial(loops.torch_finetune, autocast=None),
}


def small_gpt2() -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=50,
        n_positions=16,
        n_embd=8,
        n_layer=1,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
    )
    torch.manual_seed(0)
    return GPT2LMHeadModel(config).eval()


@pytest.mark.parametrize("name", LOOPS)
def test_loops_take_the_steps_that_are_written_out_here(name: str) -> None:
    model = small_gpt2().double()
    LOOPS[name](model, PASSAGES, COUNTS, refresh=2, lr=1e-3)

    plain = small_gpt2().double()
    optimizer = torch.optim.Adam(plain.parameters(), lr=1e-3)
    first, second = PASSAGES

    for passage, steps in ((first, 2), (first, 1), (second, 1)):
        optimizer.zero_grad()
        tokens = torch.tensor([passage])
        plain(input_ids=tokens, labels=tokens).loss.backward()

        for _ in range(steps):
            optimizer.step()

    logits = model(tokens).logits
    expected = plain(tokens).logits

    assert torch.allclose(expected, logits, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
@pytest.mark.parametrize("wrong", [{"refresh": 1}, {"lr": 1e-4}])
def test_a_loop_that_computes_something_else_is_noticed(
    wrong: dict[str, Any], dtype: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case("gpt2-small", 8, 4, lengths="short", texts=12, dtype=dtype)
    adapting = Adapting(case, CPU, TrigramEmbedder())

    allowed = case.allowed_difference(CPU)

    assert adapting.difference() <= allowed

    right = loops.torch_finetune

    def finetune(*arguments: Any, **options: Any) -> None:
        right(*arguments, **options | wrong)

    monkeypatch.setattr("benchmarks.adapting.torch_finetune", finetune)

    assert adapting.difference() > allowed


def test_a_small_run_measures_every_operator_and_makes_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # pytest-benchmark measures nothing in a process of pytest-xdist, nor in one started there.
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    monkeypatch.chdir(ROOT)
    output = tmp_path / "run.json"
    arguments = ["benchmarks", "-q", "--smoke", "-p", "no:cacheprovider"]
    arguments += [f"--benchmark-json={output}"]
    # A fork lacks the thread that pytest's faulthandler would wait for.
    arguments += ["-p", "no:faulthandler", "-o", "addopts=--import-mode=importlib"]

    def measure() -> None:
        assert pytest.main(arguments) == 0

    assert status_of(forked(measure, seconds=300)) == 0

    run = json.loads(output.read_text())
    comparisons = [Comparison(**one["extra_info"]) for one in run["benchmarks"]]
    groups = {path.stem.removeprefix("bench_") for path in ROOT.glob("*/bench_*.py")}

    assert {one.group for one in comparisons if one.peers} == groups
    assert all(one.seconds > 0 for one in comparisons)

    assert run["machine_info"]["threads"] == 1

    page = report.page(run)

    assert all(f"| {one.case} | " in page for one in comparisons)

    with pytest.raises(ValueError, match="no case was measured"):
        report.page(run | {"benchmarks": [{"extra_info": {}}]})


def run_of(threads: int = 2, peer: float = 1.0, **seconds: float) -> dict[str, Any]:
    """What pytest-benchmark writes of cases that take these seconds."""
    cases = [
        asdict(
            Comparison("selection", case, ours, {"a peer": peer}, {"a peer": 1 / ours})
        )
        for case, ours in seconds.items()
    ]
    benchmarks = [{"extra_info": case} for case in cases]
    return {"machine_info": {"threads": threads}, "benchmarks": benchmarks}


def test_a_comparison_has_every_case_before_and_after() -> None:
    before = run_of(slower=0.1, faster=0.1, same=2.0, gone=1.0)
    after = run_of(slower=0.2, faster=0.05, same=2.0, new=1.0)
    _, *rows, _ = compare.lines(before, after)

    assert [row.split() for row in rows] == [
        ["selection", "slower", "100", "ms", "200", "ms", "2.000x", "1.000x"],
        ["selection", "faster", "100", "ms", "50", "ms", "0.500x", "1.000x"],
        ["selection", "same", "2", "s", "2", "s", "1.000x", "1.000x"],
        ["selection", "gone:", "only", "before"],
        ["selection", "new:", "only", "after"],
    ]

    _, *rows, _ = compare.lines(before, run_of(same=2.0, peer=0.96))

    assert rows[0].endswith("0.960x !")

    with pytest.raises(ValueError, match="threads is 2 before, 1 after"):
        compare.lines(before, run_of(threads=1, same=2.0))

    with pytest.raises(ValueError, match="no case in common"):
        compare.lines(before, run_of(new=1.0))
