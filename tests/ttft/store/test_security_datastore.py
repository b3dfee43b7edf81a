"""Datastores that were forged: an error that says why, no crash, and nothing outside of them."""

import copy
import json
import os
import random
import shutil
import signal
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from hullft_ops.cli.info import describe
from hullft_ops.ttft import Datastore
from hullft_ops.ttft.store import build as indexing
from hullft_ops.ttft.store import datastore as datastore_module
from hullft_ops.ttft.store import search as search_index
from hullft_ops.ttft.store import sources as sources_module
from hullft_ops.ttft.store.build import Cutting, index_corpus
from hullft_ops.ttft.store.format import Journal
from hullft_ops.ttft.store.search import IndexThresholds
from hullft_ops.ttft.store.sources import Counts, Source
from hullft_ops.ttft.store.writer import StoreWriter

COUNT = 600
UUID = f"{'0' * 12}4000{'8' * 16}"
KINDS = {"ivf": IndexThresholds(flat=100), "ivfpq": IndexThresholds(flat=100, ivf=200)}


@pytest.fixture(params=["ivf", "ivfpq"])
def path(request, embedder, tmp_path, monkeypatch) -> Path:
    """A datastore with inverted lists, which a search reads."""
    monkeypatch.setattr(datastore_module, "_EXACT_ROWS", 0)
    texts = [f"text {n} of word{n % 9} and word{n % 31}" for n in range(COUNT)]
    Datastore.build(
        texts, embedder, tmp_path / "s", progress=False, thresholds=KINDS[request.param]
    )
    return tmp_path / "s"


def manifest_of(path: Path) -> dict[str, Any]:
    return dict(json.loads((path / "manifest.json").read_text()))


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = manifest_of(path)
    change(values)
    (path / "manifest.json").write_text(json.dumps(values))


def forge(path: Path, suffix: str, content: bytes) -> None:
    """Replace a file, and put size and checksum in the manifest right."""
    (file,) = path.glob(f"data-*/*{suffix}")
    file.write_bytes(content)

    def put_right(values: dict[str, Any]) -> None:
        for entry in (*values["shards"], values["embeddings"], values["index"]["file"]):
            if entry["file"] == file.name:
                entry |= {"bytes": len(content), "crc32": zlib.crc32(content)}

    edit(path, put_right)


def used(path: Path, embedder: Any) -> None:
    """All that reads a datastore."""
    store = Datastore.open(path)
    describe(path, as_json=True)
    describe(path, as_json=False)
    queries = embedder.encode(["text 3 of word3", "word1"])
    store.search(queries, 20)
    store.filter(text=[store.texts[0]]).search(queries, 1)
    assert all(isinstance(text, str) for text in store.texts)


def outcome(path: Path, embedder: Any) -> str:
    """Of using a datastore, in a process that a crash ends: "fine", "refused", or what else."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        faiss.omp_set_num_threads(1)
        said = "fine"
        try:
            used(path, embedder)
        except ValueError:
            said = "refused"
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writer, said.encode()[:500])
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as said:
        found = said.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return found if code == 0 else f"died: {code}"


def mutated(content: bytes, generator: random.Random, head: int) -> bytes:
    """A few bytes changed, most of them near the beginning, where structure is."""
    changed = bytearray(content)
    for _ in range(generator.randint(1, 3)):
        last = min(head, len(content)) if generator.random() < 0.6 else len(content)
        place = generator.randrange(last)
        match generator.randrange(4):
            case 0:
                changed[place] ^= 1 << generator.randrange(8)
            case 1:
                value = generator.choice(
                    [0, 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**64 - 1]
                )
                changed[place : place + 8] = value.to_bytes(8, "little")
            case 2:
                del changed[place : place + generator.randint(1, 40)]
            case _:
                changed[place:place] = generator.randbytes(generator.randint(1, 40))
    return bytes(changed)


def fuzz(
    path: Path, suffix: str, embedder: Any, rounds: int, head: int
) -> Counter[str]:
    generator, outcomes = random.Random(0), Counter()
    (file,) = path.glob(f"data-*/*{suffix}")
    for number in range(rounds):
        copy = path.with_name(f"copy{number}")
        shutil.copytree(path, copy)
        forge(copy, suffix, mutated(file.read_bytes(), generator, head))
        outcomes[outcome(copy, embedder)] += 1
        shutil.rmtree(copy)
    return outcomes


@pytest.mark.parametrize(("suffix", "head"), [(".arrow", 1000), (".f32", 200)])
def test_forged_files_are_refused_or_harmless(path, embedder, suffix, head):
    outcomes = fuzz(path, suffix, embedder, 25, head)
    assert set(outcomes) <= {"fine", "refused"}, outcomes
    assert outcomes["refused"] >= 5 or suffix == ".f32"


HOSTILE = [
    None, True, -1, 0, 1, 2**31, 2**63, 10**400, 0.5, float("nan"), "", "x", "../../etc/passwd",
    "/etc/passwd", [], {}, [[]], [None], {"file": "/etc/passwd"}, [{"file": 1}],
]  # fmt: skip


def mutate_value(values: Any, generator: random.Random) -> None:
    """Somewhere in it another value, one left out, or one too many."""
    while True:
        keys = list(values) if isinstance(values, dict) else list(range(len(values)))
        key = generator.choice(keys)
        inner = values[key]
        if isinstance(inner, dict | list) and inner and generator.random() < 0.7:
            values = inner
            continue
        match generator.randrange(6):
            case 0:
                del values[key]
            case 1 if isinstance(values, dict):
                values["more"] = copy.deepcopy(generator.choice(HOSTILE))
            case _:
                values[key] = copy.deepcopy(generator.choice(HOSTILE))
        return


def test_forged_manifests_are_refused_or_harmless(path, embedder):
    """In this process: another error than ValueError ends the test."""
    generator, original = random.Random(0), (path / "manifest.json").read_bytes()
    refused = 0
    for _ in range(150):
        values = json.loads(original)
        for _ in range(generator.randint(1, 2)):
            mutate_value(values, generator)
        (path / "manifest.json").write_text(json.dumps(values))
        try:
            used(path, embedder)
        except ValueError:
            refused += 1
    assert refused > 100
    for _ in range(150):
        (path / "manifest.json").write_bytes(
            mutated(original, generator, len(original))
        )
        try:
            used(path, embedder)
        except ValueError:
            refused += 1
    assert refused > 200


def test_forged_journals_are_refused_or_harmless(embedder, tmp_path):
    file = tmp_path / "journal.json"
    shard = {"file": "texts-00000.arrow", "count": 3, "bytes": 9, "crc32": 1}
    settings = {"source": "c.jsonl"}
    source = {
        "settings": settings,
        "records": 1,
        "malformed": 0,
        "near_empty": 0,
        "repeated": 0,
    }
    good = {
        "embedder": "e",
        "dim": 2,
        "data": f"data-{UUID}",
        "settings": settings,
        "shard": shard,
    }
    good |= {
        "embeddings_crc32": 0,
        "embedded": 2,
        "source": source | {"malformed_named": []},
    }
    file.write_text(json.dumps(good))
    assert Journal.read(tmp_path).embedded == 2
    generator, refused = random.Random(0), 0
    for _ in range(300):
        values = json.loads(json.dumps(good))
        mutate_value(values, generator)
        file.write_text(json.dumps(values))
        try:
            Journal.read(tmp_path)
        except ValueError:
            refused += 1
    assert refused > 150


SOURCE = {"settings": {"source": "c"}, "records": 1, "malformed": 0, "near_empty": 0}
SOURCE |= {"repeated": 0, "malformed_named": []}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.update(dim=2**40), "dim must be at most 2147483647"),
        (lambda v: v["index"].update(probes=10**6), "index.probes must be at most"),
        (
            lambda v: v["index"].update(probes=0),
            "index.probes must be a positive integer, got 0",
        ),
        (lambda v: v["index"].update(lists=601), "index.lists must be at most 600"),
        (
            lambda v: v["index"].update(recall=float("nan")),
            "index.recall must be from 0 to 1",
        ),
        (
            lambda v: v["index"]["file"].update(count=5),
            "index.file.count must be 600, got 5",
        ),
        (
            lambda v: v["embeddings"].update(crc32=2**32),
            "embeddings.crc32 must be at most",
        ),
        (lambda v: v.update(sources=[{}] * 9), "at most one a shard"),
        (
            lambda v: v.update(sources=[{"a": 1}]),
            "sources must be objects with settings",
        ),
        (
            lambda v: v.update(sources=[SOURCE | {"binary": -1}]),
            "sources.binary must be an integer",
        ),
        (
            lambda v: v.update(sources=[SOURCE | {"binary_named": [3]}]),
            "binary_named must be strings",
        ),
    ],
)
def test_values_out_of_their_range_are_named(path, change, message):
    edit(path, change)
    with pytest.raises(ValueError, match=message):
        Datastore.open(path)


def test_json_without_end_is_refused(path, monkeypatch):
    (path / "manifest.json").write_text("[" * 10**6)
    with pytest.raises(ValueError, match="is not JSON"):
        Datastore.open(path)
    (path / "manifest.json").write_text('{"format": ' + "9" * 5000 + "}")
    with pytest.raises(ValueError, match="is not JSON"):
        Datastore.open(path)
    with (path / "manifest.json").open("w") as file:
        file.truncate(1 << 40)
    with pytest.raises(
        ValueError, match="must have at most 67108864 bytes, has 1099511627776"
    ):
        Datastore.open(path)


@pytest.mark.parametrize(
    "what", ["manifest.json", "data-*", "data-*/*.arrow", "data-*/*.f32"]
)
def test_links_that_leave_the_datastore_are_refused(path, tmp_path, what):
    (entry,) = path.glob(what)
    outside = tmp_path / f"outside{entry.suffix}"
    entry.rename(outside)
    entry.symlink_to(outside)
    with pytest.raises(ValueError, match=f"{entry.name} is a symbolic link"):
        Datastore.open(path)


def test_a_write_removes_and_changes_nothing_behind_a_link(path, embedder, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    (path / f"data-{UUID}").symlink_to(outside)
    (tmp_path / "c.jsonl").write_text(
        '{"text": "one more text of some length", "source": "x"}\n'
    )
    source = Source(tmp_path / "c.jsonl")
    with pytest.raises(ValueError, match="has the columns text, got"):
        index_corpus(source, path, embedder, mode="append")
    assert (outside / "kept").read_text() == "kept"
    StoreWriter.begin(
        path, embedder, indexing._settings(source, Cutting()), "interrupted"
    )
    (data,) = (p for p in path.glob("data-*") if not p.is_symlink())
    data.rename(tmp_path / "moved")
    data.symlink_to(outside)
    for mode in ("resume", "restart"):
        with pytest.raises(ValueError, match="is a symbolic link"):
            index_corpus(source, path, embedder, mode=mode)
    assert [entry.name for entry in outside.iterdir()] == ["kept"]


def test_an_index_that_names_rows_there_are_none_is_refused(path, embedder):
    store = Datastore.open(path)
    search = store.lists
    far = search_index.ListSearch(
        search.index, search.matrix[: COUNT // 2], search.facts
    )
    with pytest.raises(
        ValueError, match=r"must name rows 0..299, names \d+: .*corrupt"
    ):
        far.search(embedder.encode(["text 3"]), COUNT // 2)


def test_lines_of_any_length_are_named_and_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(sources_module, "_MAX_LINE_BYTES", 100)
    lines = [
        '{"text": "one"}',
        '{"text": "' + "x" * 1000 + '"}',
        '{"text": "two"}',
        "9" * 90,
    ]
    lines += [
        '{"text": "' + "y" * (99 - 12) + '"}',
        "[" * 100,
        '{"n": ' + "7" * 90 + "}",
        "z" * 5000,
    ]
    (tmp_path / "c.jsonl").write_text("\n".join(lines))
    counts = Counts()
    records = list(Source(tmp_path / "c.jsonl", max_bad_share=1).records(counts))
    assert [record["text"] for record in records] == ["one", "two", "y" * 87]
    assert (counts.records, counts.malformed) == (8, 5)
    assert counts.malformed_named[0] == "c.jsonl:2: longer than 100 bytes"
    assert counts.malformed_named[-1] == "c.jsonl:8: longer than 100 bytes"


def test_numbers_of_too_many_digits_are_malformed(tmp_path):
    (tmp_path / "c.jsonl").write_text(
        '{"text": "one"}\n{"text": "two", "n": ' + "7" * 5000 + "}\n"
    )
    counts = Counts()
    assert len(list(Source(tmp_path / "c.jsonl", max_bad_share=1).records(counts))) == 1
    assert counts.malformed_named == ["c.jsonl:2: not JSON"]


def test_vectors_that_are_none_are_refused(path, embedder):
    (file,) = path.glob("data-*/*.f32")
    forge(path, ".f32", np.full(file.stat().st_size // 4, np.nan, np.float32).tobytes())
    assert outcome(path, embedder) == "refused"
