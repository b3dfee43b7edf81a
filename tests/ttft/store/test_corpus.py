"""Reading corpora of every kind, and what bad ones get."""

import gzip
import json
import os

import datasets
import pyarrow.parquet
import pytest

from hullft_ops.ttft.store.corpus import Corpus, IndexConfig
from hullft_ops.ttft.validation import InputError

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
    records, skipped = read(str(corpus))

    assert records == [
        {"text": record["text"], "source": f"{corpus.name}:{number}"}
        for number, record in enumerate(RECORDS, start=1)
    ]
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
    (folder / "store" / "texts.txt").write_text("of a datastore")

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
        "Tides\n\nHigh water & low.\n\nToday\n\ndef tide():\n    return 6"
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


def test_latin_1_is_named(tmp_path):
    (tmp_path / "b.txt").write_text("Größe", encoding="latin-1")

    assert read(tmp_path) == ([], ["b.txt: not UTF-8 text"])

    (tmp_path / "c.csv").write_text("text\nGröße\n", encoding="latin-1")

    with pytest.raises(InputError, match="c.csv: .*'utf-8' codec can't decode"):
        read(tmp_path / "c.csv")


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
    with pytest.raises(InputError, match="^nowhere: no such file or folder$"):
        read("nowhere")

    (tmp_path / "datastore.json").touch()

    with pytest.raises(InputError, match="is a datastore, not the texts of one$"):
        read(tmp_path)

    columns = "the columns are domain, text, year: --text-column names another"

    with pytest.raises(InputError, match=f".jsonl: no column colour, {columns}"):
        read(jsonl(tmp_path), text_column="colour")
