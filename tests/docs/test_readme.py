"""The examples of the README and the guides run as written, with the beginnings of the guides."""

import os
import re
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest

from guides import DISTRIBUTED, PAGES, RERANK, ROOT, blocks, run_blocks
from hullft_ops import ttft

WITH_BLOCKS = [page for page in PAGES if blocks(page)]


@pytest.mark.parametrize(
    "page",
    [page for page in WITH_BLOCKS if page not in (DISTRIBUTED, RERANK)],
    ids=lambda page: page.stem,
)
def test_blocks_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    guides = tmp_path / "docs" / "guides"
    guides.mkdir(parents=True)
    for guide in PAGES:
        # The tutorial trains on short passages in half the time.
        if guide.parent.name == "guides":
            (guides / guide.name).write_text(guide.read_text()[:300])

    run_blocks(page)


def test_the_reference_has_every_public_name_of_the_layer() -> None:
    page = (ROOT / "docs" / "reference" / "ttft.md").read_text()
    names = re.findall(r"^::: hullft_ops\.ttft\.(\w+)$", page, re.MULTILINE)

    assert sorted(names) == sorted(ttft.__all__)
