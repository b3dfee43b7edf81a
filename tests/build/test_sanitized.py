"""The bugs that tools/sanitized_tests.py plants have their places."""

import pytest

from sanitized_tests import BUGGY, KINDS, ROOT, planted


@pytest.mark.parametrize("name", KINDS)
def test_every_bug_has_its_place(name: str) -> None:
    kind = KINDS[name]
    text = planted((ROOT / BUGGY).read_text(encoding="utf-8"), kind.edits)

    assert all(f'planted("{bug.name}")' in text for bug in kind.bugs)
