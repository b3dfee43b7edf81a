"""The study of which passages to read."""

import json
import sys
from pathlib import Path

import pytest
import torch
from benchmarks.studies import context_choice

from hullft_ops.evaluation.results import read_rows
from hullft_ops.ttft import Datastore, MemoryStore, load_embedder


def test_the_hull_reads_no_passage_twice() -> None:
    query = torch.nn.functional.normalize(torch.tensor([[3.0, 2.0, 1.0]]))
    # Six copies of the nearest, then what the query lacks of it.
    rows = torch.tensor([[1.0, 0.0, 0.0]] * 6 + [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    store = MemoryStore([f"text {i}" for i in range(8)], rows, "none")
    assert store.search(query, 8)[1][0, :5].tolist() == [0, 1, 2, 3, 4]

    choosing = context_choice.ChoosingStore(store, context_choice.heaviest, 5)
    scores, positions = choosing.search(query, 8)
    assert positions[0].tolist() == [0, 6, 7, 1, 2, 3, 4, 5]
    assert scores[0].tolist() == (rows @ query[0])[positions[0]].tolist()
    assert len(choosing) == 8
    assert choosing.texts == store.texts


def test_every_choice_has_a_row_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"def area_{n}(side):\n    return {n} * side * side" for n in range(12)]
    Datastore.build(texts[1:], load_embedder(), tmp_path / "store")
    prompt = {"text": texts[0], "continuation": "area_0(2)"}
    (tmp_path / "prompts.jsonl").write_text(json.dumps(prompt))
    experiment = {
        "store": str(tmp_path / "store"),
        "prompts": str(tmp_path / "prompts.jsonl"),
        "settings": {"n_select": 0, "context": 5, "context_following": 1},
    }
    (tmp_path / "experiment.json").write_text(json.dumps(experiment))
    rows = tmp_path / "rows.jsonl"
    arguments = [str(tmp_path / "experiment.json"), "--output", str(rows)]
    monkeypatch.setattr(sys, "argv", ["context_choice", *arguments])
    context_choice.main()
    measured = rows.read_bytes()
    context_choice.main()
    assert rows.read_bytes() == measured
    assert [row.config.split()[-1] for row in read_rows(rows)] == ["hull", "mmr", "dpp"]
