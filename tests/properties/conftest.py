"""The same examples in every run, so that only a change of the code makes one fail; no deadline,
since the machine may be busy. ``HYPOTHESIS_PROFILE=few`` takes fewer; ``search`` looks for many
new ones, and shrinks those that fail."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import Phase, settings

from hullft_ops import _C
from switches import switched

settings.register_profile(
    "fixed",
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=20,
    phases=[Phase.explicit, Phase.generate],
)
settings.register_profile("few", settings.get_profile("fixed"), max_examples=3)
settings.register_profile("search", deadline=None, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))


@pytest.fixture(params=_C.simd_levels(), scope="module", autouse=True)
def simd_level(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every property holds for each instruction set: hypothesis takes no fixture of a function."""
    yield from switched(_C.simd_level, _C.use_simd_level, request.param)
