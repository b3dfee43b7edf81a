"""The benchmarks' own parts, and one run of the small ones at sizes that prove nothing."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks import (
    bench_accumulate,
    bench_many,
    bench_selection,
    bench_ttft,
    compare,
    fresh,
    growth,
    loops,
    peers,
    report,
    run,
    timing,
)
from benchmarks.pools import REAL_DIM, distinct_pools, tiled
from benchmarks.recorder import Recorder
from benchmarks.results import Results, comparison
from benchmarks.timing import Comparison, Pace, Timing, measure, measure_in_turns
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from hullft_ops import reference


def at(seconds: float) -> Timing:
    return Timing(seconds, seconds, seconds, 5)


def selection(batch: int, seconds: float, dim: int = 384) -> Comparison:
    case = {"batch": batch, "candidates": 200, "dim": dim, "n_select": 50}
    case |= {"dtype": "float32", "variant": "vanilla"}
    comparison = Comparison("selection", f"B{batch}", case, at(seconds))
    comparison.peers = {"NumPy": at(160 * seconds), "activeft SIFT": at(900 * seconds)}
    comparison.peers |= {
        "activeft Retriever": at(2000 * seconds),
        "torch, Gram": at(40 * seconds),
    }
    comparison.bytes_moved, comparison.roofline = 10**6, at(seconds / 4)
    comparison.times_roofline = 4.1
    return comparison


# A plugin by which the first test fails once it is through.
FAILS_LATE = """
import pytest

@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    yield
    assert item is not item.session.items[0]
"""


@pytest.fixture
def results() -> Results:
    environment = {
        "versions": {"torch": "2.13.0", "peft": None},
        "cuda_devices": [],
        "cpu": {"simd": "avx2"},
        "processor": "a CPU",
    }
    measured = [selection(batch, batch * 1e-4) for batch in (1, 8, 64)]
    return Results(
        "cpu", "full", "abc1234", "2026-01-01 00:00 UTC", 2, environment, measured
    )


def test_measure_takes_the_median_and_runs_setup_before_every_call() -> None:
    events: list[str] = []
    pace = Pace(seconds=0.0, min_rounds=3, max_rounds=5)
    found = measure(
        lambda: events.append("call"), pace, setup=lambda: events.append("setup")
    )
    assert events == ["setup", "call"] * 5  # two to warm up and the 3 rounds
    assert found.rounds == 3
    assert found.lower <= found.seconds <= found.upper
    assert Timing.of([1.0, 9.0, 2.0], scale=4.0).seconds == 8.0


class SlowingMachine:
    """A clock, and calls that take ten times as long from its first second on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(timing, "perf_counter", lambda: self.now)

    def call(self, seconds: float) -> Callable[[], None]:
        def take() -> None:
            self.now += 10 * seconds if self.now >= 1 else seconds

        return take


def test_calls_in_turns_share_what_slows_the_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = SlowingMachine(monkeypatch)
    ours, peer = machine.call(0.05), machine.call(0.1)
    pace = Pace(seconds=0.5, min_rounds=9, max_rounds=100)
    one, other = measure(ours, pace), measure(peer, pace)
    assert other.seconds / one.seconds == pytest.approx(20)
    machine.now = 0.0
    found, ratio = measure_in_turns(ours, peer, pace, scale=4.0)
    assert ratio == pytest.approx(8)
    assert found.rounds == 9
    assert (found.lower, found.upper) == (pytest.approx(0.4), pytest.approx(4.0))


def test_a_recorder_compares_with_nothing_before_ours() -> None:
    comparison = Comparison("selection", "B1", {})
    recorder = Recorder(None, torch.device("cpu"), Pace(0.4, 2, 2), comparison)
    with pytest.raises(RuntimeError, match="ours must be timed before"):
        recorder.peer("a peer", lambda: None)
    recorder.ours(lambda: sum(range(100)))
    recorder.peer("twice", lambda: sum(range(100)), scale=1e6)
    recorder.sweep(lambda: sum(range(100_000)), 800)
    recorder.times("times a longer one", lambda: sum(range(100_000)))
    assert comparison.ratio("twice") > 1e5
    assert comparison.times_roofline is not None
    assert comparison.times_roofline < 0.1
    assert comparison.facts["times a longer one"] < 0.1
    recorder.let_go()
    calls: list[int] = []
    recorder.peer("alone", lambda: calls.append(0), scale=1e6)
    assert len(calls) == 4  # two to warm up and the 2 rounds: no turns of many calls
    assert (
        comparison.ratio("alone")
        == comparison.peers["alone"].seconds / comparison.seconds
    )


@pytest.mark.parametrize(
    ("call_seconds", "rounds"), [(1e-6, 100), (0.1, 20), (1.0, 5), (60.0, 1)]
)
def test_rounds_fill_the_time_within_bounds(call_seconds: float, rounds: int) -> None:
    assert (
        Pace(seconds=2.0, min_rounds=5, max_rounds=100).rounds(call_seconds) == rounds
    )


def test_pools_of_the_real_size_are_the_real_ones_and_others_keep_their_geometry(
    golden: dict[str, torch.Tensor],
) -> None:
    pool, query = distinct_pools(200, 384)
    similarity = torch.einsum("bkd,bd->bk", golden["pool"], golden["query"])
    found = torch.einsum("bkd,bd->bk", pool, query)
    assert (found - similarity.sort(descending=True).values).abs().max() < 1e-6
    larger, larger_query = distinct_pools(300, 512)
    assert larger.shape == (8, 300, 512)
    assert (larger.norm(dim=-1) - 1).abs().max() < 1e-6
    assert (torch.einsum("bkd,bd->bk", larger, larger_query).diff(dim=-1) <= 1e-6).all()
    assert torch.equal(tiled(query, 11)[8:], query[:3])
    with pytest.raises(ValueError, match="dim must be at least 384, got 100"):
        distinct_pools(200, 100)


def test_numpy_peers_select_and_round_as_the_reference() -> None:
    pools, queries = distinct_pools(60, 384)
    for pool, query in zip(pools[:3].double(), queries[:3].double(), strict=True):
        expected = reference.fw_select(pool, query, 20)
        found = peers.numpy_select(pool.numpy(), query.numpy(), 20)
        assert found.indices.tolist() == expected.indices.tolist()
        assert found.counts.tolist() == expected.counts.tolist()
        support = pool.numpy()[found.indices]
        gram = peers.numpy_integerize_gram(support, query.numpy(), found.weights, 20)
        assert gram.tolist() == expected.counts.tolist()


@pytest.mark.parametrize("n_select", [1, 4, 20])
def test_torch_peer_selects_a_batch_as_the_reference(n_select: int) -> None:
    pools, queries = distinct_pools(60, 384)
    pools, queries = pools.double(), queries.double()
    queries[1] = pools[1, 7]  # at its goal from the start
    pools[2, 1:] = pools[2, :1]  # nowhere to go
    queries[3] = 0.25 * pools[3, 2] + 0.75 * pools[3, 9]
    found = peers.torch_select(pools, queries, n_select)
    for pool, query, selection in zip(pools, queries, found, strict=True):
        expected = reference.fw_select(pool, query, n_select)
        assert selection.indices.tolist() == expected.indices.tolist()
        assert selection.counts.tolist() == expected.counts.tolist()
        assert np.abs(selection.weights - expected.weights.numpy()).max() < 1e-9


@pytest.mark.parametrize("wrong", [{"max_iter": 3}, {"n_select": 4}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_torch_peer_that_computes_something_else_is_noticed(
    dtype: torch.dtype, wrong: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = bench_selection.Case(2, 30, 384, 5)
    pool, query = (tiled(tensor, 2) for tensor in distinct_pools(30, 384))
    comparison = Comparison("selection", str(case), {})
    recorder = Recorder(None, torch.device("cpu"), Pace(0.0, 2, 2), comparison)
    recorder.ours(lambda: None)
    bench_selection.time_gram(case, recorder, pool, query)
    assert list(comparison.peers) == ["torch, Gram"]
    right = peers.torch_select

    def selected(x: torch.Tensor, q: torch.Tensor, n: int) -> list[peers.PeerSelection]:
        return right(x, q, **{"n_select": n} | (wrong if x.dtype == dtype else {}))

    monkeypatch.setattr(peers, "torch_select", selected)
    with pytest.raises(AssertionError):
        bench_selection.time_gram(case, recorder, pool, query)


def test_nnls_finds_convex_weights_that_pairwise_approaches() -> None:
    pool, query = (tensor[0].double() for tensor in distinct_pools(60, 384))
    weights = peers.simplex_nnls(pool.numpy(), query.numpy())
    best = np.linalg.norm(query.numpy() - weights @ pool.numpy())
    expected = reference.fw_select(pool, query, 60, max_iter=1000, variant="pairwise")
    assert abs(weights.sum() - 1) < 1e-4
    assert abs(best - expected.residual) < 1e-4


PASSAGES, COUNTS = [[1, 2, 3, 4], [9, 8, 7]], [3, 1]
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
    found, plain = small_gpt2().double(), small_gpt2().double()
    LOOPS[name](found, PASSAGES, COUNTS, refresh=2, lr=1e-3)
    optimizer = torch.optim.Adam(plain.parameters(), lr=1e-3)
    for passage, steps in ((PASSAGES[0], 2), (PASSAGES[0], 1), (PASSAGES[1], 1)):
        optimizer.zero_grad()
        tokens = torch.tensor([passage])
        plain(input_ids=tokens, labels=tokens).loss.backward()
        for _ in range(steps):
            optimizer.step()
    for (name, ours), theirs in zip(
        plain.named_parameters(), found.parameters(), strict=True
    ):
        difference = (ours - theirs).detach().abs()
        if name.endswith("c_attn.bias"):
            # Adam makes a step even of rounding, which is all the gradient that a key bias has.
            difference[plain.config.n_embd : 2 * plain.config.n_embd] = 0
        assert difference.max() < 1e-7, name
    assert torch.allclose(plain(tokens).logits, found(tokens).logits, atol=1e-6, rtol=0)


def test_the_torch_loop_runs_under_autocast() -> None:
    dtypes: list[torch.dtype] = []
    model = small_gpt2()
    model.transformer.h[0].mlp.register_forward_hook(
        lambda *found: dtypes.append(found[-1].dtype)
    )
    loops.torch_finetune(
        model, PASSAGES, COUNTS, refresh=2, lr=1e-3, autocast=torch.bfloat16
    )
    assert dtypes == [torch.bfloat16] * 3
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_in_a_process_of_its_own_adapts_as_it_does_here(
    name: str, tmp_path: Path
) -> None:
    model = small_gpt2()
    model.save_pretrained(tmp_path)
    loop = fresh.FinetuningLoop(
        LOOPS[name], tmp_path, torch.device("cpu"), PASSAGES, COUNTS, 2, 1e-3
    )
    taken, found = loop.timed(Pace(0.0, 5, 5))
    assert taken.rounds == 2
    LOOPS[name](model, PASSAGES, COUNTS, refresh=2, lr=1e-3)
    for here, there in zip(model.parameters(), found, strict=True):
        assert torch.equal(here, there)


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
@pytest.mark.parametrize("wrong", [{"refresh": 1}, {"counts": [3, 0]}, {"lr": 2e-3}])
@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_that_computes_something_else_is_noticed(
    name: str, wrong: dict[str, Any], dtype: str | None
) -> None:
    def end(loop: Callable[..., None], **changed: Any) -> list[torch.Tensor]:
        model = small_gpt2()
        loop(
            model,
            **{"passages": PASSAGES, "counts": COUNTS, "refresh": 2, "lr": 1e-3}
            | changed,
        )
        return [parameter.detach() for parameter in model.parameters()]

    model, case = small_gpt2(), bench_ttft.Case("tiny", dtype=dtype)
    base = [parameter.detach() for parameter in model.parameters()]
    differences = partial(
        bench_ttft.parameter_differences, model, base, end(LOOPS["torch"])
    )
    bench_ttft.assert_same_end(case, differences(end(LOOPS[name])))
    with pytest.raises(AssertionError):
        bench_ttft.assert_same_end(case, differences(end(LOOPS[name], **wrong)))


class PlainFinetuner:
    """What `measure_ttft` asks of a finetuner, from a plain loop on two short texts."""

    def __init__(self) -> None:
        self.model = small_gpt2()

    def select(self, prompt: str) -> SimpleNamespace:
        return SimpleNamespace(input_ids=PASSAGES, counts=COUNTS)

    @contextmanager
    def adapted(self, prompt: str) -> Iterator[None]:
        LOOPS["torch"](self.model, PASSAGES, COUNTS, refresh=2, lr=bench_ttft.LR)
        yield
        self.model.load_state_dict(small_gpt2().state_dict())


@pytest.mark.parametrize("right", [0, 1, 2])
def test_ttft_compares_where_either_loop_ends(
    right: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first ``right`` loops do as they should, the next one learns twice as fast."""
    cpu, case = torch.device("cpu"), bench_ttft.Case("tiny", refresh=2)
    comparison = Comparison("ttft", str(case), {})

    def timed(
        loop: fresh.FinetuningLoop, pace: Pace
    ) -> tuple[Timing, list[torch.Tensor]]:
        model = AutoModelForCausalLM.from_pretrained(
            loop.folder, dtype=torch.float32
        ).eval()
        lr = loop.lr if len(comparison.peers) < right else 2 * loop.lr
        loop.finetune(model, loop.passages, loop.counts, refresh=loop.refresh, lr=lr)
        return at(1.0), [parameter.detach() for parameter in model.parameters()]

    monkeypatch.setattr(fresh.FinetuningLoop, "timed", timed)
    monkeypatch.setattr(
        bench_ttft, "_finetuner", lambda *arguments: (PlainFinetuner(), "")
    )
    monkeypatch.setattr(bench_ttft, "in_fresh_process", lambda *arguments: 4.5)
    monkeypatch.setattr(bench_ttft, "time_pass", lambda *arguments, **options: at(1.0))
    monkeypatch.setattr(bench_ttft, "keep_freed_memory", lambda: None)
    recorder = Recorder(None, cpu, Pace(0.0, 2, 2), comparison)
    with nullcontext() if right == 2 else pytest.raises(AssertionError):
        bench_ttft.measure_ttft(case, recorder, cpu, tmp_path)
    assert list(comparison.peers) == ["padded loop", "torch loop"][: right + 1]


class PromptsInTurn:
    """What `measure_many` asks of a finetuner. Together, the second prompt ends ``off`` away."""

    def __init__(self, off: float) -> None:
        self.model, self._off = small_gpt2(), off

    def adapt_many(self, prompts: list[str]) -> list[SimpleNamespace]:
        trained = []
        for i in range(len(prompts)):
            with self.adapted(prompts[i]) as report:
                found = [p.detach() + i * self._off for p in self.model.parameters()]
            support = SimpleNamespace(input_ids=[prompts[i]], counts=[1])
            trained.append(
                SimpleNamespace(parameters=found, report=report, support=support)
            )
        return trained

    @contextmanager
    def adapted(self, prompt: str) -> Iterator[SimpleNamespace]:
        LOOPS["torch"](self.model, [list(prompt.encode())], [1], refresh=1, lr=1e-3)
        yield SimpleNamespace(losses=[float(len(prompt))])
        self.model.load_state_dict(small_gpt2().state_dict())


@pytest.mark.parametrize("off", [0.0, 1e-3])
def test_many_compares_each_adapter_with_that_of_its_prompt_alone(
    off: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu, case = torch.device("cpu"), bench_many.Case("tiny", 4)
    comparison = Comparison("many", str(case), {})
    monkeypatch.setattr(bench_many, "_finetuner", lambda *arguments: PromptsInTurn(off))
    monkeypatch.setattr(
        bench_many, "_held_out", lambda: ["\1\2\3", "\4\5", "\6\7", "\1\3"]
    )
    monkeypatch.setattr(bench_many, "keep_freed_memory", lambda: None)
    recorder, scales = Recorder(None, cpu, Pace(0.0, 2, 2), comparison), list[float]()
    peer = recorder.peer

    def scaled(name: str, call: Callable[[], object], *, scale: float) -> None:
        scales.append(scale)
        peer(name, call, scale=scale)

    monkeypatch.setattr(recorder, "peer", scaled)
    with pytest.raises(AssertionError) if off else nullcontext():
        bench_many.measure_many(case, recorder, cpu, tmp_path)
    assert comparison.facts[bench_many.LOSSES] == 0
    # Two prompts of 5 tokens stand for all 9.
    assert scales == [9 / 5]
    assert comparison.facts[bench_many.PER_HOUR] == 4 * 3600 / comparison.seconds


def test_a_fresh_process_is_another_with_as_many_threads() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert fresh.in_fresh_process(torch.get_num_threads) == 3
    finally:
        torch.set_num_threads(threads)
    assert fresh.in_fresh_process(os.getpid) != os.getpid()


def test_results_survive_their_file(results: Results, tmp_path: Path) -> None:
    results.write(tmp_path / "cpu.json")
    assert Results.read(tmp_path / "cpu.json") == results
    assert [path.name for path in tmp_path.iterdir()] == ["cpu.json"]
    (tmp_path / "cpu.json").write_text('{"format": 99}')
    with pytest.raises(
        ValueError, match=r"cpu.json is not a result file: format must be 1"
    ):
        Results.read(tmp_path / "cpu.json")


RESULT_FILES = sorted(run.ROOT.glob("benchmarks/results/**/cpu.json"))


@pytest.mark.parametrize("path", RESULT_FILES, ids=lambda path: path.parent.name)
def test_pages_of_earlier_runs_can_be_written_and_compared(
    path: Path, tmp_path: Path
) -> None:
    results = Results.read(path)
    report.write_page(results, tmp_path / "cpu.md", None)
    has_sweeps = any(one.roofline for one in results.comparisons)
    assert ("| times the sweep |" in (tmp_path / "cpu.md").read_text()) == has_sweeps
    assert compare.main([str(path), str(path)]) == 0


def test_compare_exits_with_one_on_a_regression_alone(
    results: Results, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new, other = (tmp_path / f"{name}.json" for name in ("old", "new", "other"))
    results.write(old)
    slower = [replace(c, ours=at(1.3 * c.seconds)) for c in results.comparisons[:1]]
    replace(results, comparisons=slower + results.comparisons[1:]).write(new)
    replace(results, device="cuda").write(other)
    assert compare.main([str(old), str(old)]) == 0
    assert compare.main([str(old), str(new), "--factor", "1.5"]) == 0
    capsys.readouterr()
    assert compare.main([str(old), str(new)]) == 1
    assert (
        "selection B1: 100 us before, 130 us now, 1.30 times" in capsys.readouterr().out
    )
    assert compare.main([str(old), str(other)]) == 2
    assert "of device cpu, the new ones of cuda" in capsys.readouterr().err
    elsewhere = results.environment | {"processor": "another CPU"}
    replace(results, environment=elsewhere).write(other)
    assert compare.main([str(old), str(other)]) == 2
    assert "of processor a CPU, the new ones of another CPU" in capsys.readouterr().err
    replace(results, comparisons=slower).write(new)
    assert compare.main([str(old), str(new)]) == 1
    said = capsys.readouterr().out
    assert "not measured any more" in said
    assert "1 of 1 cases slower than 1.2 times" in said


def test_page_and_plot_show_ratios_goals_and_exponents(
    results: Results, tmp_path: Path
) -> None:
    assert growth.exponent([1, 10, 100], [2.0, 200.0, 20000.0]) == pytest.approx(2)
    assert growth.write_growth(results, tmp_path / "cpu.png")
    assert (tmp_path / "cpu.png").read_bytes().startswith(b"\x89PNG")
    report.write_page(results, tmp_path / "cpu.md", "cpu.png")
    page = (tmp_path / "cpu.md").read_text()
    assert "| B64 | 6.4 ms | 160x (1.02 s) | 900x (5.76 s) |" in page
    assert "times NumPy | at least 150 | 160 | yes |" in page
    assert (
        "the same, B = 64, d = 384: times torch, Gram | at least 1 | 40 | yes |" in page
    )
    assert "times activeft SIFT | at least 1000 | 900 | no |" in page
    assert "| GB/s | times the sweep |" in page
    assert "no lower limit" in page
    assert "bound" not in page
    assert "torch 2.13.0" in page
    assert "peft" not in page


def test_goals_call_real_only_the_pools_that_are(
    results: Results, tmp_path: Path
) -> None:
    measured = [selection(64, 1e-3), selection(1, 1e-3, 1024)]
    report.write_page(replace(results, comparisons=measured), tmp_path / "cpu.md", None)
    page = (tmp_path / "cpu.md").read_text()
    assert "| selection, 64 real pools, K = 200, d = 384, N = 50: times NumPy |" in page
    assert (
        "| selection, 1 widened pool, K = 200, d = 1024, N = 50: times NumPy |" in page
    )
    note = page.split("## Goals")[1].split("\n\n")[1]
    assert "random isometry" in note
    pool, _ = distinct_pools(200, REAL_DIM)
    assert (
        f"There are {len(pool)} different\npools: 64 are these {len(pool)}, repeated 8"
        in note
    )


def test_the_page_says_beside_the_table_what_ttft_is_compared_with(
    results: Results, tmp_path: Path
) -> None:
    case = {
        "model": "gpt2",
        "n_select": 20,
        "refresh": 2,
        "lengths": "300",
        "dtype": None,
    }
    peers = {"padded loop": at(70.0), "torch loop": at(15.0)}
    facts = {"parameter-sized buffers": 4.5}
    found = Comparison("ttft", "gpt2", case, at(10.0), peers, facts=facts)
    report.write_page(replace(results, comparisons=[found]), tmp_path / "cpu.md", None)
    page = (tmp_path / "cpu.md").read_text()
    assert (
        "| GPT-2 in float32, N = 20: times the padded loop | at least 5 | 7 | yes |"
        in page
    )
    assert (
        "| GPT-2 in float32, N = 20: times the torch loop | at least 1 | 1.5 | yes |"
        in page
    )
    note, table = page.split("## Ttft")[1].split("\n\n")[1:3]
    assert "1024 of GPT-2" in note
    assert "| gpt2 | 10 s | 7x (70 s) | 1.5x (15 s) | 4.5 |" in table


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """pytest-benchmark measures nothing in a process of pytest-xdist, nor in one started there."""
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)


@pytest.mark.usefixtures("alone")
def test_a_small_run_measures_every_operator(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "benchmarks",
        "-q",
        "-p",
        "no:cacheprovider",
    ]
    command += [f"--ignore=benchmarks/bench_{group}.py" for group in ("ttft", "many")]
    command += ["--grid", "smoke", "--benchmark-json", str(tmp_path / "found.json")]
    completed = subprocess.run(
        command, cwd=run.ROOT, capture_output=True, text=True, check=False
    )
    assert completed.returncode == 0, completed.stdout + completed.stderr
    measured = json.loads((tmp_path / "found.json").read_text())["benchmarks"]
    found = [comparison(item["extra_info"]) for item in measured]
    assert {one.group for one in found} == {*run.GROUPS} - {"ttft", "many"}
    assert all(
        one.ours is not None and one.ours.seconds > 0 and one.peers for one in found
    )
    vanilla = [one for one in found if one.case.get("variant") == "vanilla"]
    assert vanilla
    assert all({"NumPy", "torch, Gram"} <= one.peers.keys() for one in vanilla)


@pytest.mark.usefixtures("alone")
def test_the_command_writes_what_it_measured(tmp_path: Path) -> None:
    assert (
        run.main(
            ["--grid", "smoke", "--groups", "accumulate", "--output", str(tmp_path)]
        )
        == 0
    )
    found = Results.read(tmp_path / "cpu.json")
    assert {one.group for one in found.comparisons} == {"accumulate"}
    assert (found.device, found.grid, found.threads) == ("cpu", "smoke", run.THREADS)
    assert (tmp_path / "cpu.md").exists()


@pytest.mark.usefixtures("alone")
def test_a_case_that_fails_once_it_is_timed_is_left_out_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fails_late.py").write_text(FAILS_LATE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p fails_late")
    assert (
        run.main(
            ["--grid", "smoke", "--groups", "accumulate", "--output", str(tmp_path)]
        )
        == 1
    )
    found = {one.name for one in Results.read(tmp_path / "cpu.json").comparisons}
    wanted = [str(case) for case in bench_accumulate.cases("smoke")]
    assert len(wanted) > 1
    assert found == set(wanted[1:])


def test_a_group_that_fails_takes_no_other_with_it(
    results: Results,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    def measure(group: str, device: str, grid: str) -> tuple[list[Comparison], int]:
        return ([], 2) if group == "sift" else (results.comparisons, 0)

    monkeypatch.setattr(run, "_measure", measure)
    options = ["--grid", "smoke", "--output", str(tmp_path / "new" / "folder")]
    (tmp_path / "new" / "folder").mkdir(parents=True)
    (tmp_path / "new" / "folder" / "cpu.png").touch()
    monkeypatch.setattr(run, "write_growth", lambda *arguments: False)
    assert run.main([*options, "--groups", "selection", "sift"]) == 1
    assert (
        "error: sift: pytest exited with 2, 0 cases were measured"
        in capsys.readouterr().err
    )
    found = Results.read(tmp_path / "new" / "folder" / "cpu.json")
    assert found.comparisons == results.comparisons
    assert not (tmp_path / "new" / "folder" / "cpu.png").exists()
    assert run.main([*options, "--groups", "sift"]) == 1


def test_a_part_of_the_groups_does_not_replace_the_published_results() -> None:
    before = {path: path.read_bytes() for path in RESULT_FILES}
    with pytest.raises(SystemExit, match="2"):
        run.main(["--grid", "smoke", "--groups", "accumulate"])
    assert {path: path.read_bytes() for path in RESULT_FILES} == before


def test_growth_along_an_axis_leaves_other_cases_out() -> None:
    case = {
        "model": "gpt2",
        "n_select": 20,
        "refresh": 2,
        "lengths": "300",
        "dtype": None,
    }
    cases = [case | {"n_select": n} for n in (5, 20, 50)]
    cases += [case | {"lengths": "short"}, case | {"dtype": "bfloat16"}]
    found = [Comparison("ttft", str(c), c, at(10.0 * c["n_select"])) for c in cases]
    (sweep,) = [s for s in growth.SWEEPS if (s.group, s.axis) == ("ttft", "n_select")]
    results = Results("cpu", "full", "", "", 2, {}, found)
    assert growth._series(results, sweep) == {
        "hullft_ops": [(5.0, 50.0), (20.0, 200.0), (50.0, 500.0)]
    }
