"""The examples of the README and the guides run as written, with the beginnings of the guides."""

import os
import re
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest

from guides import DISTRIBUTED, PAGES, RERANK, ROOT, blocks, run_blocks
from hullft_ops import ttft

WITH_BLOCKS = [page for page in PAGES if blocks(page)]


def test_there_are_blocks() -> None:
    assert len(blocks(PAGES[0])) >= 2

    guides = [page.stem for page in WITH_BLOCKS if page.parent.name == "guides"]
    named = {"datastore", "distributed", "evaluation", "library", "loop", "ttft"}

    assert named <= set(guides)
    assert any(kind == "bash" for page in WITH_BLOCKS for kind, _ in blocks(page))


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


def outputs(page: Path) -> set[str]:
    """The datastores, adapters and results that a page writes."""
    text = page.read_text()
    commands = re.findall(
        r"^\S*hullft-ops (?:index|train|evaluate) .*", text, re.MULTILINE
    )
    names = re.findall(r'Datastore\.build\(.*"(.+)"\)', text)
    for command in commands:
        option = re.search(r"--output (\S+)", command)
        if option:
            names.append(option[1])
        elif " evaluate " in command:
            names.append("results.jsonl")
    return set(names)


def test_pages_write_different_outputs() -> None:
    names = [name for page in PAGES for name in outputs(page)]

    assert {"areas", "store", "tutorial.jsonl", "results.jsonl"} <= set(names)
    assert len(names) == len(set(names)), sorted(names)


def test_the_reference_has_every_public_name_of_the_layer() -> None:
    page = (ROOT / "docs" / "reference" / "ttft.md").read_text()
    names = re.findall(r"^::: hullft_ops\.ttft\.(\w+)$", page, re.MULTILINE)

    assert sorted(names) == sorted(ttft.__all__)
