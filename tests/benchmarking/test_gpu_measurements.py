"""What the GPU check's tasks notice, and the page that it ends with."""

import os
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from benchmarks import gpu_check
from benchmarks.gpu import estimates, operators, planted, selection, tasks, ttft
from benchmarks.gpu.findings import read_findings
from benchmarks.gpu.kernels import Kernel, short_name
from benchmarks.gpu.page import page
from benchmarks.gpu.plan import plan, read_ncu
from benchmarks.gpu.step import FAILED

CPU = torch.device("cpu")


def test_an_operator_that_computes_something_else_is_noticed() -> None:
    for call in operators.calls(seed=0).values():
        outputs = call.run(*call.on(CPU))
        call.assert_right(outputs)

        with pytest.raises(AssertionError):
            call.assert_right([output * 1.01 + 1 for output in outputs])


def test_a_selection_that_differs_fails_its_task_and_is_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    off = dict.fromkeys(selection.ALLOWED_DIFFERENCES, 2e-4)
    monkeypatch.setattr(selection, "differences", lambda *arguments: off)
    output = tmp_path / "findings"
    named = list(selection.tasks(CPU, small=True))
    tasks.run_tasks(named, output, CPU, 60)
    results = read_findings(output)

    right = [name for name, _ in named if name.startswith("right")]
    assert {name: len(why) for name, why in results["failed"].items()} == (
        dict.fromkeys(right, 3)
    )
    assert len(results["speeds"]) == len(right) == 5


def test_estimates_that_are_wrong_on_the_card_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "nvcc"
    # It writes a program to the last of its arguments.
    compiler.write_text(
        "#!/bin/sh\nfor last; do :; done\n"
        "printf '#!/bin/sh\necho roots 0 1e-7\necho quotients 2 nan\n' > $last\n"
        "chmod +x $last\n"
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    output = tmp_path / "findings"
    tasks.run_tasks(estimates.tasks(CPU, small=True), output, CPU, 60)
    results = read_findings(output)

    assert results["failed"] == {
        "all mantissas": ["quotients, wrong ones, at most 0: 2"]
    }
    assert results["facts"]["all mantissas"]["roots, largest error"] == 1e-7


def test_other_attention_in_graphs_and_what_a_capture_breaks_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flash, masked = "flash_fwd_kernel", "fmha_cutlassF_bf16_aligned_64x64_rf_sm80"
    kernels = iter([flash, masked])
    monkeypatch.setattr(
        ttft,
        "launched",
        lambda *arguments, **options: defaultdict(Kernel, {next(kernels): Kernel(1)}),
    )
    monkeypatch.setattr(planted.Waiting, "forward", lambda self, x: 1.1 * self.inner(x))
    output = tmp_path / "findings"
    tasks.run_tasks(ttft.tasks(CPU, small=True), output, CPU, 60)
    failed = read_findings(output)["failed"]

    assert list(failed) == [
        "graphs gpt2-small-short-N4-r2",
        "a pass that waits while capturing",
        "a pass that waits always",
    ]
    (why,) = failed["graphs gpt2-small-short-N4-r2"]
    assert f"the graphs run ['{masked}'], not ['{flash}']" in why


def test_kernels_have_short_names() -> None:
    name = (
        "void hullft::(anonymous namespace)::gram_kernel<float, 32>(hullft::View, int)"
    )
    assert short_name(name) == "gram_kernel"
    assert short_name("Memcpy DtoD (Device -> Device)").startswith("Memcpy DtoD")


def test_the_page_has_at_most_40_lines_however_much_fails() -> None:
    speed = {"speed": "a | b", "seconds": 2e-3, "floor": 1e-3}
    results = {
        "tasks": 99,
        "failed": {str(i): ["off\nby 2"] for i in range(99)},
        "speeds": [speed] * 2,
    }
    records = [
        {
            "name": s.name,
            "status": FAILED,
            "seconds": 1.0,
            "why": "",
            "results": results,
        }
        for s in plan("cuda")
    ]
    for record in records[7:]:  # the others measure no times
        record["results"] = results | {"speeds": []}
    text = page(gpu_check.summarise(records, "cuda", "0123456", False))

    assert len(text.splitlines()) == 40
    assert "| 1386 failed |" in text
    assert "| a / b | 2,000.0 | 50% | a / b | 2,000.0 | 50% |" in text
    assert "| build: 0 | off by 2 |" in text


def test_a_profile_without_launches_is_none(tmp_path: Path) -> None:
    path = tmp_path / "output"
    path.write_text('==PROF== "x"\n"ID","Kernel Name"\n"0","gram_kernel"\n')
    assert read_ncu(path) == {"rows": ['"ID","Kernel Name"', '"0","gram_kernel"']}

    path.write_text("==ERROR== ERR_NVGPUCTRPERM", encoding="utf-8")
    with pytest.raises(ValueError, match="no launch was profiled"):
        read_ncu(path)
