"""Reading corpora of every kind, and what bad ones get."""

import gzip
import io
import json
import os
import re
import sys
import uuid
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest

from hullft_ops.ttft.store import sources
from hullft_ops.ttft.store.sources import Counts, Source, SourceError

RECORDS = [
    {"text": f"text {i} é", "domain": "ab"[i % 2], "year": 2000 + i} for i in range(5)
]
LINES = "".join(json.dumps(record) + "\n" for record in RECORDS)


def read(corpus: object, **options: object) -> tuple[list[dict[str, object]], Counts]:
    counts = Counts()
    return list(Source(corpus, **options).records(counts)), counts


def jsonl(path: Path) -> Path:
    (path / "c.jsonl").write_text(LINES)
    return path / "c.jsonl"


def jsonl_zst(path: Path) -> Path:
    """Two frames, as `cat` leaves them."""
    halves = [LINES[:70].encode(), LINES[70:].encode()]
    frames = [pa.Codec("zstd").compress(half, asbytes=True) for half in halves]
    (path / "c.jsonl.zst").write_bytes(b"".join(frames))
    return path / "c.jsonl.zst"


def jsonl_gz(path: Path) -> Path:
    (path / "c.jsonl.gz").write_bytes(gzip.compress(LINES.encode()))
    return path / "c.jsonl.gz"


def parquet(path: Path) -> Path:
    pa.parquet.write_table(
        pa.Table.from_pylist(RECORDS), path / "c.parquet", row_group_size=2
    )
    return path / "c.parquet"


def saved(path: Path) -> Path:
    datasets.Dataset.from_list(RECORDS).save_to_disk(str(path / "saved"))
    return path / "saved"


def in_memory(path: Path) -> datasets.Dataset:
    return datasets.Dataset.from_list(RECORDS)


@pytest.mark.parametrize(
    "make", [jsonl, jsonl_zst, jsonl_gz, parquet, saved, in_memory]
)
def test_every_kind_gives_the_same_records(make, tmp_path):
    records, counts = read(make(tmp_path), metadata=("domain", "year"))
    assert [{k: v for k, v in r.items() if k != "source"} for r in records] == RECORDS
    assert (counts.records, counts.malformed) == (5, 0)
    assert len({record["source"] for record in records}) == 5


def test_a_folder_gives_its_files_by_name(tmp_path):
    folder = tmp_path / "texts"
    (folder / "deep").mkdir(parents=True)
    (folder / "b.txt").write_text("bee")
    (folder / "a.md").write_text("naïve")
    (folder / "deep" / "c").write_text("sea")
    (folder / "picture.png").write_bytes(b"\x89PNG\xff")
    (folder / "link.txt").symlink_to(folder / "b.txt")
    records, counts = read(folder)
    assert records == [
        {"text": "naïve", "source": "a.md"},
        {"text": "bee", "source": "b.txt"},
        {"text": "sea", "source": "deep/c"},
    ]
    assert (counts.records, counts.malformed) == (3, 0)
    assert (counts.binary, counts.binary_named) == (1, ["picture.png"])


def test_a_file_whose_name_is_no_text_is_malformed(tmp_path):
    (tmp_path / "a").write_text("ay")
    (tmp_path / os.fsdecode(b"b\xff")).write_text("bee")
    records, counts = read(tmp_path, max_bad_share=0.5)
    assert [record["source"] for record in records] == ["a"]
    assert counts.malformed_named == ["b?: a name that is not UTF-8"]


def test_hidden_files_are_left_out_but_in_a_folder_given(tmp_path):
    folder = tmp_path / ".notes"
    (folder / ".git" / "deep").mkdir(parents=True)
    for name in ("a", ".b", ".git/c", ".git/deep/d"):
        (folder / name).write_text(name)
    assert [record["source"] for record in read(folder)[0]] == ["a"]
    assert [record["source"] for record in read(folder / ".git")[0]] == ["c", "deep/d"]


def test_hidden_folders_are_not_read(tmp_path, monkeypatch):
    for folder in (".git/objects/a", "b/.cache/c"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "b" / "text").write_text("bee")
    walked, scandir = [], os.scandir
    monkeypatch.setattr(
        os, "scandir", lambda path: walked.append(str(path)) or scandir(path)
    )
    assert [record["source"] for record in read(tmp_path)[0]] == ["b/text"]
    assert walked == [str(tmp_path), str(tmp_path / "b")]


def test_files_and_folders_are_in_one_order(tmp_path):
    for name in ("b.txt", "b/z", "b-c/a", "b0", "a/b/c", "a/b.c", "B"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    paths = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert [record["source"] for record in read(tmp_path)[0]] == [
        path.relative_to(tmp_path).as_posix() for path in paths
    ]


def test_another_text_column_and_a_source_of_its_own(tmp_path):
    (tmp_path / "c.jsonl").write_text('{"body": "hello", "source": "page 3"}\n')
    records, _ = read(tmp_path / "c.jsonl", text_column="body", metadata=("source",))
    assert records == [{"text": "hello", "source": "page 3"}]


def test_malformed_lines_are_counted_and_named(tmp_path):
    lines = [
        b'{"text": "good"}',
        b"{oops",
        b'["x"]',
        b"",
        b'{"text": 3}',
        b"\xff",
        b"[" * 99999,
    ]
    (tmp_path / "c.jsonl").write_bytes(
        b"\n".join([*lines, b'{"text": "\\ud800"}']) + b"\n"
    )
    records, counts = read(tmp_path / "c.jsonl", max_bad_share=0.9)
    assert [record["source"] for record in records] == ["c.jsonl:1"]
    assert (counts.records, counts.malformed) == (7, 6)
    assert counts.malformed_named == [
        "c.jsonl:2: not JSON",
        "c.jsonl:3: not an object",
        'c.jsonl:5: no string "text"',
        "c.jsonl:6: not UTF-8",
        "c.jsonl:7: not JSON",
    ]


@pytest.mark.parametrize(("share", "fails"), [(0.2, False), (0.19, True)])
def test_too_many_malformed_lines_are_refused(tmp_path, share, fails):
    (tmp_path / "c.jsonl").write_text(LINES[: LINES.rindex("{")] + "oops\n")
    if not fails:
        assert len(read(tmp_path / "c.jsonl", max_bad_share=share)[0]) == 4
        return
    with pytest.raises(
        SourceError, match=r"1 of 5 records are malformed, .* 0.19: c.jsonl:5: not"
    ):
        read(tmp_path / "c.jsonl", max_bad_share=share)


def test_a_bad_corpus_is_refused_before_all_of_it_is_read(tmp_path):
    (tmp_path / "c.jsonl").write_text("oops\n" * 5000)
    with pytest.raises(SourceError, match="100 of 100 records"):
        read(tmp_path / "c.jsonl")


@pytest.mark.parametrize("make", [jsonl, parquet, saved, in_memory])
def test_missing_columns_are_named(make, tmp_path):
    corpus = make(tmp_path)
    with pytest.raises(SourceError, match="colour"):
        read(corpus, metadata=("domain", "colour"))
    with pytest.raises(SourceError, match="body"):
        read(corpus, text_column="body")


def test_metadata_does_not_take_the_place_of_the_text(tmp_path):
    with pytest.raises(
        SourceError, match="must not name \"text\", .* from 'body', got year, text"
    ):
        Source(tmp_path / "c.jsonl", "body", ("year", "text"))


def test_what_cannot_be_read_is_said(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"nowhere.jsonl: no such file or folder"
    ):
        read(tmp_path / "nowhere.jsonl")
    (tmp_path / "c.csv").write_text("text\n")
    with pytest.raises(SourceError, match=r"c.csv: must be .jsonl"):
        read(tmp_path / "c.csv")
    (tmp_path / "c.parquet").write_text("junk")
    with pytest.raises(SourceError, match=r"c.parquet: not Parquet"):
        read(tmp_path / "c.parquet")
    datasets.DatasetDict({"train": in_memory(tmp_path)}).save_to_disk(
        str(tmp_path / "splits")
    )
    with pytest.raises(
        SourceError, match="has the splits train: give the folder of one"
    ):
        read(tmp_path / "splits")


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.txt").write_text("b")
    (tmp_path / "a.txt").write_text("a")
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "sub":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError, match="sub"):
        read(tmp_path)


def test_a_folder_that_looks_like_a_dataset_and_is_none(tmp_path):
    (tmp_path / "dataset_dict.json").write_text("{}")
    with pytest.raises(SourceError, match="not a saved dataset: KeyError"):
        read(tmp_path)


def test_one_name_is_no_sequence_of_names(tmp_path):
    with pytest.raises(
        TypeError, match="metadata must be a sequence of str, got one str 'year'"
    ):
        Source(tmp_path / "c.jsonl", metadata="year")


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "c.jsonl").write_text(LINES, encoding="utf-8-sig")
    records, counts = read(tmp_path / "c.jsonl")
    assert len(records) == len(RECORDS)
    assert counts.malformed == 0
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("a", encoding="utf-8-sig")
    assert [record["text"] for record in read(tmp_path / "texts")[0]] == ["a"]


def test_metadata_that_is_no_unicode_is_malformed(tmp_path):
    lines = [{"text": "a", "domain": "\ud800"}] + [{"text": "b", "domain": "c"}] * 9
    (tmp_path / "c.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines)
    )
    records, counts = read(
        tmp_path / "c.jsonl", metadata=("domain",), max_bad_share=0.2
    )
    assert len(records) == 9
    assert counts.malformed_named == ['c.jsonl:1: "domain" with half a surrogate pair']


def mixed(folder: Path) -> Path:
    for name in (
        "README.md",
        "src/a.py",
        "src/deep/b.py",
        "build/c.py",
        "notes/d.md",
        "x.bin",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"text of {name}")
    (folder / "x.bin").write_bytes(b"text, then\0" + b"a" * 9)
    return folder


@pytest.mark.parametrize(
    ("include", "exclude", "found"),
    [
        ((), ("*.py",), ["README.md", "notes/d.md"]),
        (("*.py",), (), ["build/c.py", "src/a.py", "src/deep/b.py"]),
        (("**/*.py", "notes"), ("build/", "src/deep"), ["notes/d.md", "src/a.py"]),
        (("./src/*.py",), ("deep",), ["src/a.py"]),
    ],
)
def test_patterns_choose_among_the_files_of_a_folder(tmp_path, include, exclude, found):
    records, _ = read(mixed(tmp_path), include=include, exclude=exclude)
    assert [record["source"] for record in records] == found


def test_patterns_need_a_folder(tmp_path):
    with pytest.raises(SourceError, match="include and exclude need a folder"):
        read(jsonl(tmp_path), include=("*.md",))


def test_a_datastore_in_the_folder_is_no_text_of_the_users(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    store = tmp_path / "store"
    (store / f"data-{uuid.uuid4().hex}").mkdir(parents=True)
    (store / "manifest.json").write_text("{}")
    (tmp_path / "manifest.json").write_text("one of the user's")
    assert [record["source"] for record in read(tmp_path)[0]] == [
        "a.txt",
        "manifest.json",
    ]


@pytest.mark.parametrize("name", ["a.md", "a.txt", "a.rst.gz"])
def test_one_text_file_is_one_record(tmp_path, name):
    text = "naïve\nlines\n"
    content = text.replace("\n", "\r\n").encode("utf-8-sig")
    (tmp_path / name).write_bytes(
        gzip.compress(content) if name.endswith("gz") else content
    )
    assert read(tmp_path / name)[0] == [{"text": text, "source": name}]
    (tmp_path / "b.txt").write_bytes(b"\xff")
    with pytest.raises(SourceError, match=r"1 of 1 records .* b.txt: not UTF-8"):
        read(tmp_path / "b.txt")


def test_a_json_file_may_hold_an_array_or_lines(tmp_path):
    file = tmp_path / "c.json"
    file.write_text("\n" + json.dumps([*RECORDS, "a string", 7], indent=1))
    records, counts = read(file, max_bad_share=0.2)
    assert [record["text"] for record in records] == [r["text"] for r in RECORDS] + [
        "a string"
    ]
    assert records[5]["source"] == "c.json:5"
    assert counts.malformed_named == ["c.json:6: not an object or a string"]
    file.write_text(LINES)
    assert len(read(file)[0]) == len(RECORDS)
    file.write_text('[{"text": 1},]')
    with pytest.raises(SourceError, match=r"c.json: not JSON: .*line 1 column"):
        read(file)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (
            LINES,
            [(record["text"], f"stdin:{n}") for n, record in enumerate(RECORDS, 1)],
        ),
        ("[A link](to)\nand a line\n", [("[A link](to)\nand a line\n", "stdin")]),
        ("", [("", "stdin")]),
    ],
)
def test_stdin_is_lines_of_json_or_one_text(content, found, monkeypatch):
    monkeypatch.setattr(
        sys, "stdin", io.TextIOWrapper(io.BytesIO(content.encode("utf-8-sig")))
    )
    assert [(record["text"], record["source"]) for record in read("-")[0]] == found
    assert Source("-").name == "stdin"


def test_a_text_without_end_does_not_fill_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_MAX_LINE_BYTES", 50)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"a" * 999))
    with pytest.raises(SourceError, match="a.txt.gz: longer than 50 bytes"):
        read(tmp_path / "a.txt.gz")
    (tmp_path / "b").write_bytes(b"b" * 999)
    with pytest.raises(SourceError, match="b: longer than 50 bytes"):
        read(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"c" * 999)))
    with pytest.raises(SourceError, match="stdin: longer than 50 bytes"):
        read("-")


@pytest.mark.parametrize(
    "cut", [lambda content: content[:60], lambda content: b"junk" + content]
)
def test_a_damaged_compressed_file_is_named(tmp_path, cut):
    file = jsonl_gz(tmp_path)
    file.write_bytes(cut(file.read_bytes()))
    with pytest.raises(SourceError, match=re.escape(f"{file}: ")):
        read(file)
