"""Reading corpora of every kind, and what bad ones get."""

import gzip
import io
import json
import os
import sys

import datasets
import pyarrow.parquet
import pytest

from hullft_ops.ttft.errors import InputError
from hullft_ops.ttft.store.corpus import Corpus, IndexConfig

RECORDS = [
    {"text": "text 0 é", "domain": "a", "year": 2000},
    {"text": "text 1 é", "domain": "b", "year": 2001},
    {"text": "text 2 é", "domain": "a", "year": 2002},
    {"text": "text 3 é", "domain": "b", "year": 2003},
    {"text": "text 4 é", "domain": "a", "year": 2004},
]
LINES = "".join(json.dumps(record) + "\n" for record in RECORDS)


def read(corpus, **options):
    skipped = []
    return list(Corpus(corpus, IndexConfig(**options)).records(skipped)), skipped


def pipe(monkeypatch, content):
    stdin = io.TextIOWrapper(io.BytesIO(content.encode()))
    monkeypatch.setattr(sys, "stdin", stdin)


def jsonl(path):
    file = path / "c[1] *.jsonl"
    file.write_text(LINES)
    return file


def jsonl_gz(path):
    file = path / "c.jsonl.gz"
    file.write_bytes(gzip.compress(LINES.encode()))
    return file


def json_array(path):
    file = path / "c.json"
    file.write_text(json.dumps(RECORDS))
    return file


def csv(path):
    rows = [",".join(map(str, record.values())) for record in RECORDS]
    (path / "c.csv").write_text("\n".join(["text,domain,year", *rows]))
    return path / "c.csv"


def parquet(path):
    table = pyarrow.Table.from_pylist(RECORDS)
    pyarrow.parquet.write_table(table, path / "c.parquet", row_group_size=2)
    return path / "c.parquet"


def saved(path):
    datasets.Dataset.from_list(RECORDS).save_to_disk(str(path / "saved"))
    return path / "saved"


def saved_splits(path):
    splits = {"train": datasets.Dataset.from_list(RECORDS)}
    splits["test"] = datasets.Dataset.from_list(RECORDS[:1])
    datasets.DatasetDict(splits).save_to_disk(str(path / "saved"))
    return path / "saved"


FORMATS = [jsonl, jsonl_gz, json_array, csv, parquet, saved, saved_splits]


@pytest.mark.parametrize("make", FORMATS)
def test_every_format_gives_the_same_records(make, tmp_path):
    corpus = make(tmp_path)
    records, skipped = read(str(corpus), metadata=("domain", "year"))
    sources = [f"{corpus.name}:{number}" for number in range(1, 6)]

    assert [record.pop("source") for record in records] == sources
    assert records == [{**record, "year": str(record["year"])} for record in RECORDS]
    assert skipped == []


def test_a_folder_gives_its_text_files_in_order(tmp_path):
    folder = tmp_path / "texts"
    (folder / "deep" / ".git").mkdir(parents=True)
    (folder / "b.jsonl").write_text("{}\n")
    (folder / "a.md").write_bytes("\ufeffnaïve\r\nlines".encode())
    (folder / "deep" / "c").write_text("sea")
    (folder / "deep" / ".hidden").write_text("hidden")
    (folder / "deep" / ".git" / "config").write_text("hidden")
    (folder / "link.txt").symlink_to(folder / "a.md")
    (folder / "loop").symlink_to(folder)
    (folder / "picture.png").write_bytes(b"\x89PNG\xff")
    (folder / "zeros").write_bytes(b"text\0")
    (folder / "empty").touch()
    (folder / os.fsdecode(b"\xff.txt")).write_text("a name that is not UTF-8")
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "a.cpython-313.pyc").write_bytes(b"\0")
    (folder / "store").mkdir()
    (folder / "store" / "datastore.json").write_text("{}")
    (folder / "store" / "skipped.txt").write_text("of a datastore")

    records, skipped = read(folder)

    assert records == [
        {"text": "naïve\nlines", "source": "a.md"},
        {"text": "{}\n", "source": "b.jsonl"},
        {"text": "sea", "source": "deep/c"},
        {"text": "a name that is not UTF-8", "source": "?.txt"},
    ]
    assert skipped == [
        "empty: empty",
        "picture.png: not UTF-8 text",
        "zeros: not UTF-8 text",
    ]
    assert read(folder / "deep" / ".git")[0] == [{"text": "hidden", "source": "config"}]


PAGE = """<title>Tides</title><style>p {color: red}</style><script>let x</script>
<p>High <b>wa</b>ter &amp; low.</p><p>Today</p>


<pre>def tide():
    return 6
</pre><!-- hidden -->"""


def test_html_is_what_a_browser_shows(tmp_path):
    (tmp_path / "page.html").write_text(PAGE)
    (tmp_path / "notes.gz").write_bytes(gzip.compress(b"notes"))
    records, skipped = read(tmp_path)

    assert [record["text"] for record in records] == [
        "Tides\n\nHigh water & low.\nToday\n\ndef tide():\n    return 6"
    ]
    assert skipped == ["notes.gz: not UTF-8 text"]


@pytest.mark.parametrize(
    ("include", "exclude", "names"),
    [
        ((), ("*.py",), ["README.md", "notes/d.md"]),
        (("*.py",), (), ["build/c.py", "src/a.py", "src/deep/b.py"]),
        (("*.py", "notes/*"), ("build/*", "b.py"), ["notes/d.md", "src/a.py"]),
    ],
)
def test_patterns_choose_among_the_files_of_a_folder(tmp_path, include, exclude, names):
    for name in ("README.md", "src/a.py", "src/deep/b.py", "build/c.py", "notes/d.md"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("text")

    records, _ = read(tmp_path, include=include, exclude=exclude)

    assert [record["source"] for record in records] == names


MARKDOWN = "[A link](to)\nand a line\n"


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        ("\ufeff" + LINES, [record["text"] for record in RECORDS]),
        (MARKDOWN, [MARKDOWN]),
    ],
)
def test_stdin_is_lines_of_json_or_one_text(content, texts, monkeypatch):
    pipe(monkeypatch, content)
    records, _ = read("-")

    sources = [f"stdin:{number}" for number in range(1, len(texts) + 1)]

    assert [record["text"] for record in records] == texts
    assert [record["source"] for record in records] == sources


class Builder:
    """Of a dataset on the hub at a revision."""

    hash = "1f2e"

    def as_streaming_dataset(self, split):
        return iter([{"body": f"hello from {split}"}])


def test_the_name_of_a_dataset_is_looked_up_on_the_hub(monkeypatch):
    names = []
    monkeypatch.setattr(
        datasets, "load_dataset_builder", lambda name: names.append(name) or Builder()
    )
    corpus = Corpus("owner/name", IndexConfig(text_column="body"))

    assert names == ["owner/name"]
    assert corpus.state == "1f2e"
    assert list(corpus.records([])) == [
        {"text": "hello from train", "source": "name:1"}
    ]


def test_text_in_utf_16_is_read_and_in_latin_1_named(tmp_path):
    (tmp_path / "a.txt").write_text("Größe", encoding="utf-16")
    (tmp_path / "b.txt").write_text("Größe", encoding="latin-1")
    records, skipped = read(tmp_path)

    assert records == [{"text": "Größe", "source": "a.txt"}]
    assert skipped == ["b.txt: not UTF-8 text"]

    (tmp_path / "c.csv").write_text("text\nGröße\n", encoding="latin-1")

    with pytest.raises(InputError, match="c.csv: not UTF-8 text$"):
        read(tmp_path / "c.csv")


def test_columns_may_be_between_tabs(tmp_path):
    (tmp_path / "c.tsv").write_text("n\tbody\n1\tone, or two\n")
    records, _ = read(tmp_path / "c.tsv", text_column="body")

    assert [record["text"] for record in records] == ["one, or two"]


def test_metadata_are_strings_whatever_they_were(monkeypatch):
    values = ["a", "\ud800", None, 2**80, 1.5, True, ["a"], {"b": 1}]
    lines = [json.dumps({"text": "hello", "m": value}) for value in values]
    lines.append(json.dumps({"text": "half a pair: \ud800", "m": "b"}))
    pipe(monkeypatch, "\n".join(lines))
    records, skipped = read("-", metadata=("m",))

    assert [record["m"] for record in records] == [
        "a",
        "?",
        None,
        str(2**80),
        "1.5",
        "true",
        '["a"]',
        '{"b": 1}',
    ]
    assert skipped == ["stdin:9: no text in column text"]


def test_a_line_of_stdin_that_is_no_object_is_named(monkeypatch):
    pipe(monkeypatch, '{"text": "good"}\n\n[1]\n')
    with pytest.raises(InputError, match="^-: line 3 must be a JSON object$"):
        read("-")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("c.jsonl", b'{"text": "good"}\n{oops\n'),
        ("c.jsonl.gz", gzip.compress(LINES.encode(), mtime=0)[:60]),
        ("c.parquet", b"junk"),
        ("dataset_dict.json", b"{}"),
    ],
)
def test_a_damaged_file_is_named_in_one_line(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    corpus = tmp_path if name == "dataset_dict.json" else tmp_path / name

    with pytest.raises(InputError) as caught:
        read(corpus)

    assert str(caught.value).startswith(f"{corpus}: ")
    assert "\n" not in str(caught.value)


def test_what_is_not_there_is_named(tmp_path):
    # Nor is the hub asked for it.
    with pytest.raises(InputError, match=r"^nowhere.jsonl: no such file$"):
        read("nowhere.jsonl")

    with pytest.raises(InputError, match="^nowhere: no such file or folder, and as a"):
        read("nowhere")

    (tmp_path / "datastore.json").touch()

    with pytest.raises(InputError, match="is a datastore, not the texts of one$"):
        read(tmp_path)

    columns = (
        "is missing or empty, the columns are domain, text, year: "
        "--text-column names another"
    )
    for options in ({"metadata": ("domain", "colour")}, {"text_column": "colour"}):
        with pytest.raises(InputError, match=f".jsonl: column colour {columns}"):
            read(jsonl(tmp_path), **options)

    with pytest.raises(InputError, match="text is body, not metadata"):
        read(jsonl(tmp_path), text_column="body", metadata=("text",))

    splits = {"test": datasets.Dataset.from_list(RECORDS)}
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "saved"))

    with pytest.raises(InputError, match="saved: has no split train, has test"):
        read(tmp_path / "saved")

    (tmp_path / "empty.jsonl").touch()

    assert read(tmp_path / "empty.jsonl") == ([], [])
