"""Outputs are checked before the work, appear whole, and take nothing of the user's."""

import multiprocessing
import os
from pathlib import Path

import pytest

from forked import forked, status_of
from hullft_ops.ttft.files import check_output, new_folder, replacing


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "hullft_ops.json"
    }


def write(path, text, **options):
    with new_folder(path, ["*.txt"], **options) as folder:
        (folder / "a.txt").write_text(text)


def write_half(path, text, **options):
    with new_folder(path, ["*.txt"], **options) as folder:
        (folder / f"{len(contents(folder))}.txt").write_text(text)
        raise KeyboardInterrupt


def test_a_folder_appears_at_the_end(tmp_path):
    path = tmp_path / "deep" / "out"
    with new_folder(path, ["sub/*"]) as folder:
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

    with new_folder(path, ["*.txt"], resume=True):
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
    with new_folder(tmp_path / "out", ["*.txt"], resume=True) as folder:
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


def killed_at_rename(number, work):
    """Do the work in a process that ends, without cleaning up, at its so manieth rename."""
    rename, renames = Path.rename, []

    def run():
        with pytest.MonkeyPatch.context() as patch:

            def counted(path, target):
                renames.append(target)
                if len(renames) == number:
                    os._exit(9)
                return rename(path, target)

            patch.setattr(Path, "rename", counted)
            patch.setattr(Path, "replace", counted)
            work()
        # A kill while what was replaced goes.
        os._exit(9)

    assert status_of(forked(run, seconds=60)) == 9


@pytest.mark.parametrize("number", [1, 2])
def test_the_next_call_removes_what_a_kill_left(tmp_path, number):
    path = tmp_path / "out"
    write(path, "first")
    killed_at_rename(number, lambda: write(path, "second", overwrite=True))
    hidden = {entry.name for entry in tmp_path.iterdir()} - {"out"}
    assert hidden

    # The second rename is missing: nothing is at the path, until the first folder is put back.
    if number == 2:
        assert not path.exists()

        with pytest.raises(FileExistsError, match="--overwrite is not set"):
            write(path, "third")

        assert contents(path) == {"a.txt": "first"}

    write(path, "third", overwrite=True)
    assert contents(tmp_path) == {"out/a.txt": "third"}
    assert list(tmp_path.iterdir()) == [path]


def test_the_next_call_removes_the_part_of_a_file(tmp_path):
    path = tmp_path / "plot.png"

    def plot():
        with replacing(path) as file:
            file.write_text("half")

    killed_at_rename(1, plot)
    assert [entry.name for entry in tmp_path.iterdir()] == [
        ".plot.png.hullft_ops.partial"
    ]

    plot()
    assert list(tmp_path.iterdir()) == [path]


def users_file(hidden):
    with pytest.raises(KeyboardInterrupt):
        write_half(hidden.with_name("out"), "half", resume=True)
    (hidden / "thesis.md").write_text("years of work")


def users_link(hidden):
    with pytest.raises(KeyboardInterrupt):
        write_half(hidden.with_name("out"), "half", resume=True)
    (hidden / "b.txt").symlink_to(hidden.with_name("elsewhere"))


def planted_folder(hidden):
    hidden.mkdir()
    (hidden / "a.txt").write_text("years of work")


def planted_link(hidden):
    hidden.with_name("elsewhere").mkdir()
    hidden.symlink_to(hidden.with_name("elsewhere"))


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("put", [users_file, users_link, planted_folder, planted_link])
def test_what_is_not_ours_in_the_hidden_place_stays(tmp_path, put, resume):
    put(tmp_path / ".out.hullft_ops.partial")
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match=r"\.out\.hullft_ops\.partial (holds|is)"):
        write(tmp_path / "out", "new", resume=resume)

    assert contents(tmp_path) == before


def test_another_users_hidden_folder_is_refused(tmp_path, monkeypatch):
    (tmp_path / ".out.hullft_ops.partial").mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: -1)
    with pytest.raises(FileExistsError, match="is a link or another user's"):
        write(tmp_path / "out", "new")


def test_a_link_in_the_place_of_a_part_is_not_followed(tmp_path):
    (tmp_path / "thesis").write_text("years of work")
    (tmp_path / ".plot.png.hullft_ops.partial").symlink_to("thesis")
    with (
        pytest.raises(FileExistsError, match="is a link"),
        replacing(tmp_path / "plot.png"),
    ):
        pass

    assert (tmp_path / "thesis").read_text() == "years of work"


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
    with pytest.raises(FileExistsError), new_folder(path, ["*.txt"]):
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
