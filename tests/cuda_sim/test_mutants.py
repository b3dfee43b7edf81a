"""Mistakes that the tests must notice: each is one place of one source, changed."""

import re
from pathlib import Path

import pytest

from cuda_sim import build
from cuda_sim.mutants_counts import COUNTS_MUTANTS
from cuda_sim.mutants_fw import FW_MUTANTS
from cuda_sim.mutants_gram import GRAM_MUTANTS
from cuda_sim.mutants_parts import PARTS_MUTANTS
from cuda_sim.mutants_sift import SIFT_MUTANTS
from cuda_sim.mutants_sweep import SWEEP_MUTANTS
from cuda_sim.worker import Workers

MUTANTS = (
    GRAM_MUTANTS
    | PARTS_MUTANTS
    | COUNTS_MUTANTS
    | FW_MUTANTS
    | SIFT_MUTANTS
    | SWEEP_MUTANTS
)


@pytest.mark.parametrize("name", MUTANTS)
def test_caught(workers: Workers, name: str, tmp_path: Path) -> None:
    m = MUTANTS[name]
    library = build.build_patched(m.kind, m.unit, m.file, m.old, m.new, tmp_path)
    report = workers.run_cases(library, m.kind, [m.case], seed=0, timeout=60)

    assert re.search(m.report, report), f"wanted {m.report!r}, got:\n{report[-2000:]}"
