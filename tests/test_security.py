"""The tests that SECURITY.md names exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_tests_that_the_security_policy_names_are_there() -> None:
    policy = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    table = policy.partition("## Which test shows it")[2]
    names = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", table)

    assert len(names) >= 8

    for path, test in names:
        source = (ROOT / path).read_text(encoding="utf-8")
        assert f"def {test}(" in source, (path, test)
