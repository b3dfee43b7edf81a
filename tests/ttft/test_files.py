"""Outputs are checked before the work, appear whole, and take nothing of the user's."""

import multiprocessing
import os
import resource
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hullft_ops.ttft.files import check_output, named_in_errors, new_folder
from hullft_ops.ttft.store.datastore import Datastore


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in folder.rglob("*")
        if path.is_file()
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


def test_an_exception_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        write_half(tmp_path / "out", "half")

    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_has_a_name(tmp_path):
    with (
        pytest.raises(OSError, match=r"No space left on device: '.*output.*partial'"),
        new_folder(tmp_path / "output"),
        Path("/dev/full").open("w") as file,
    ):
        file.write("text")


@contextmanager
def small_files():
    """No file may grow beyond 1,000 bytes, not even pytest's own log."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def save_store(tensors, file):
    Datastore.build([str(value) for value in tensors["a"]], None, file)


@pytest.mark.parametrize("write", [save_file, torch.save, save_store])
def test_libraries_that_cannot_write_raise_an_oserror(write, tmp_path):
    file = tmp_path / "weights"

    with (
        pytest.raises(OSError, match=f"cannot write to {tmp_path}.*: ") as caught,
        named_in_errors(tmp_path),
        small_files(),
    ):
        write({"a": torch.zeros(10_000)}, file)

    assert "\n" not in str(caught.value)


def test_an_interrupted_folder_is_there_the_next_time(tmp_path):
    path = tmp_path / "out"
    for number in range(2):
        with pytest.raises(KeyboardInterrupt):
            write_half(path, f"{number}", resume=True)

    with new_folder(path, resume=True):
        pass

    assert contents(tmp_path) == {"out/0.txt": "0", "out/1.txt": "1"}


def test_the_next_call_removes_what_a_kill_left(tmp_path):
    hidden = tmp_path / ".out.hullft_ops.partial"
    hidden.mkdir()
    (hidden / "half.txt").write_text("half")
    write(tmp_path / "out", "whole")

    assert contents(tmp_path) == {"out/a.txt": "whole"}


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


def folder_of_the_user(path):
    path.mkdir()
    (path / "thesis.txt").write_text("years of work")


def link(path):
    write(path.with_name("elsewhere"), "ours")
    path.symlink_to(path.with_name("elsewhere"))


def file(path):
    path.write_text("years of work")


EXISTING = {
    file: "out exists: remove it first, or choose another name",
    folder_of_the_user: "out exists: remove it first, or choose another name",
    link: "out is neither a regular file nor a folder",
    os.mkfifo: "out is neither a regular file nor a folder",
}


@pytest.mark.parametrize("make", EXISTING)
def test_what_is_there_stays(tmp_path, make):
    path = tmp_path / "out"
    make(path)
    before = contents(tmp_path)

    with pytest.raises(FileExistsError, match=f"{EXISTING[make]}$"):
        write(path, "new")

    assert contents(tmp_path) == before


@pytest.mark.parametrize("make", [link, file])
def test_what_is_not_ours_in_the_hidden_place_stays(tmp_path, make):
    make(tmp_path / ".out.hullft_ops.partial")
    before = contents(tmp_path)

    with pytest.raises(OSError, match=r"\.out\.hullft_ops\.partial'$"):
        write(tmp_path / "out", "new")

    assert contents(tmp_path) == before


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "out").mkdir()
    write(tmp_path / "out", "new")

    assert contents(tmp_path) == {"out/a.txt": "new"}


def test_a_file_that_came_during_the_work_stays(tmp_path):
    path = tmp_path / "out"

    with pytest.raises(OSError, match="not empty"), new_folder(path):
        folder_of_the_user(path)

    assert contents(tmp_path) == {"out/thesis.txt": "years of work"}


def test_an_input_is_not_an_output(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "out", "ours")
    (tmp_path / "c.jsonl").write_text("{}")
    (tmp_path / "alias").symlink_to("c.jsonl")

    for inputs in (["c.jsonl"], ["alias"], ["wikitext", tmp_path / "c.jsonl"]):
        with pytest.raises(ValueError, match=r"output c.jsonl is the input"):
            check_output("c.jsonl", kind="rows", inputs=inputs)

    with pytest.raises(ValueError, match=r"output out is the input .*, or holds it"):
        check_output("out", inputs=[tmp_path / "out" / "a.txt"])

    check_output("free", inputs=["c.jsonl", "free"])
