"""Mistakes that the checks must notice: each is one place of one source, changed."""

import re
from pathlib import Path

import pytest

from cuda_sim import build
from cuda_sim.mutants import MUTANTS
from cuda_sim.worker import Workers


@pytest.mark.parametrize("name", MUTANTS)
def test_caught(workers: Workers, name: str, tmp_path: Path) -> None:
    m = MUTANTS[name]
    library = build.build_patched(m.kind, m.unit, m.file, m.right, m.wrong, tmp_path)
    for check in m.checks:
        report = workers.run_case(library, m.kind, check, seed=0, timeout=60)
        assert re.search(m.report, report), (
            f"{check}: wanted {m.report!r}, got:\n{report[-2000:]}"
        )
