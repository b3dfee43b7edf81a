"""Outputs are checked before the work, appear whole, and take nothing of the user's."""

import multiprocessing
import os

import pytest

from hullft_ops.ttft.files import check_output, new_folder, replacing


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "hullft_ops.json"
    }


def write(path, text, **options):
    with new_folder(path, **options) as folder:
        (folder / "a.txt").write_text(text)


def write_half(path, text, **options):
    with new_folder(path, **options) as folder:
        (folder / f"{len(contents(folder))}.txt").write_text(text)
        raise KeyboardInterrupt


def test_a_folder_appears_at_the_end(tmp_path):
    path = tmp_path / "deep" / "out"
    with new_folder(path) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "a.txt").write_text("a")

        assert not path.exists()

    assert contents(path) == {"sub/a.txt": "a"}
    assert list(path.parent.iterdir()) == [path]


def test_an_exception_leaves_what_was_there(tmp_path):
    path = tmp_path / "out"
    write(path, "first")
    with pytest.raises(KeyboardInterrupt):
        write_half(path, "second", overwrite=True)

    assert contents(tmp_path) == {"out/a.txt": "first"}

    write(path, "second", overwrite=True)
    assert contents(tmp_path) == {"out/a.txt": "second"}


def test_an_interrupted_folder_is_there_the_next_time(tmp_path):
    path = tmp_path / "out"
    for number in range(2):
        with pytest.raises(KeyboardInterrupt):
            write_half(path, f"{number}", resume=True)

    with new_folder(path, resume=True):
        pass

    assert contents(tmp_path) == {"out/0.txt": "0", "out/1.txt": "1"}


def test_two_processes_do_not_fill_one_folder(tmp_path):
    def other(results):
        try:
            write(tmp_path / "out", "other", resume=True)
        except ValueError as error:
            results.put(str(error))

    fork = multiprocessing.get_context("fork")
    results = fork.Queue()
    with new_folder(tmp_path / "out", resume=True) as folder:
        process = fork.Process(target=other, args=[results])
        process.start()

        assert "another process writes it" in results.get(timeout=30)

        process.join()
        (folder / "a.txt").write_text("mine")

    assert contents(tmp_path) == {"out/a.txt": "mine"}


def test_a_file_is_replaced_at_the_end(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("first")
    with pytest.raises(FileNotFoundError), replacing(path) as file:
        file.with_name("nowhere").rename(file)

    assert contents(tmp_path) == {"rows.jsonl": "first"}

    with replacing(path) as file:
        file.write_text("second")

    assert contents(tmp_path) == {"rows.jsonl": "second"}


def folder_of_the_user(path):
    path.mkdir()
    (path / "thesis.txt").write_text("years of work")


def folder_of_both(path):
    write(path, "ours")
    (path / "notes").mkdir()
    (path / "notes" / "mine.txt").write_text("years of work")


def link_among_ours(path):
    write(path, "ours")
    (path / "data").symlink_to("/")


def link(path):
    write(path.with_name("elsewhere"), "ours")
    path.symlink_to(path.with_name("elsewhere"))


def file(path):
    path.write_text("years of work")


FOREIGN = {
    file: "out is a file, must be a folder",
    folder_of_the_user: "out holds thesis.txt, which hullft_ops did not write",
    folder_of_both: "out holds notes/mine.txt, which hullft_ops did not write",
    link_among_ours: "out holds data, which hullft_ops did not write",
    link: "out is neither a regular file nor a folder",
    os.mkfifo: "out is neither a regular file nor a folder",
}


@pytest.mark.parametrize("make", FOREIGN)
def test_what_we_did_not_write_stays(tmp_path, make):
    path = tmp_path / "out"
    make(path)
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match=f"{FOREIGN[make]}$"):
        check_output(path, overwrite=True)
    with pytest.raises(FileExistsError):
        write(path, "new", overwrite=True)

    assert contents(tmp_path) == before


def test_a_file_that_came_during_the_work_stays(tmp_path):
    path = tmp_path / "out"
    with pytest.raises(FileExistsError), new_folder(path):
        folder_of_the_user(path)

    assert contents(tmp_path) == {"out/thesis.txt": "years of work"}


def test_only_overwrite_replaces(tmp_path):
    write(tmp_path / "out", "ours")
    file(tmp_path / "file")
    for name, kind in (("out", "folder"), ("file", "file")):
        with pytest.raises(FileExistsError, match="--overwrite is not set"):
            check_output(tmp_path / name, kind=kind)

        check_output(tmp_path / name, kind=kind, overwrite=True)

    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty", "new")


@pytest.mark.parametrize("kind", ["file", "rows"])
def test_a_file_is_not_written_over_anything_else(tmp_path, kind):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("elsewhere")
    for path, message in {
        tmp_path / "empty": "is a folder, must be a file",
        tmp_path / "link": "is neither a regular file nor a folder",
        tmp_path / "link" / "out": "cannot write to .*link$",
        "/dev/zero": "is neither a regular file nor a folder",
    }.items():
        with pytest.raises(OSError, match=message):
            check_output(path, kind=kind, overwrite=True)


def test_an_input_is_not_an_output(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "out", "ours")
    (tmp_path / "c.jsonl").write_text("{}")
    (tmp_path / "alias").symlink_to("c.jsonl")

    for inputs in (["c.jsonl"], ["alias"], ["wikitext", tmp_path / "c.jsonl"]):
        for kind in ("file", "rows"):
            with pytest.raises(ValueError, match=r"output c.jsonl is the input"):
                check_output("c.jsonl", kind=kind, inputs=inputs, overwrite=True)

    with pytest.raises(ValueError, match=r"output out is the input .*, or holds it"):
        check_output("out", inputs=[tmp_path / "out" / "a.txt"], overwrite=True)

    with pytest.raises(ValueError, match=r"output out/a.txt is a file of the input"):
        check_output("out/a.txt", kind="file", inputs=["out"], overwrite=True)

    check_output("free", inputs=["c.jsonl", "free"])
