"""What is asked of the kernels: named checks that any build of the library must pass.

A check raises ``AssertionError`` on a wrong answer; the simulator raises ``SimulatorError`` on a
wrong barrier, mask or memory access.
"""

from cuda_sim import (
    cases_corrective,
    cases_fw,
    cases_gram,
    cases_parts,
    cases_sift,
    cases_sweep,
)
from cuda_sim.checks import CASES

MODULES = (
    cases_corrective,
    cases_fw,
    cases_gram,
    cases_parts,
    cases_sift,
    cases_sweep,
)
"""Each has put its checks into CASES when it was imported."""

__all__ = ["CASES", "MODULES"]
