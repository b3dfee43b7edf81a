"""The command under a limit to its memory: a line, not a traceback."""

import errno
import shlex
import subprocess
import sys
from types import ModuleType

import pytest

from hullft_ops import cli

# KiB: Python runs, and PyTorch's libraries do not fit.
LIMIT = 250_000


def limited(*command: str) -> subprocess.CompletedProcess[str]:
    line = f"ulimit -v {LIMIT} && exec {shlex.join(command)}"
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True)


@pytest.mark.parametrize("as_module", [False, True])
def test_where_torch_finds_no_memory_the_command_says_so(as_module: bool) -> None:
    script = "import sys; sys.argv[0] = 'bin/hullft-ops'; from hullft_ops.cli import main; main()"
    command = ["-m", "hullft_ops", "info"] if as_module else ["-c", script, "info"]
    result = limited(sys.executable, *command)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("hullft-ops: too little memory, or too low a ulimit -v: ")
    assert line.endswith("failed to map segment from shared object")


def test_a_process_of_a_users_gets_the_error_as_it_is() -> None:
    result = limited(sys.executable, "-c", "import hullft_ops")
    assert "Traceback" in result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith("ImportError: ")


def caused(error: Exception, by: BaseException) -> Exception:
    error.__cause__ = by
    return error


LOADER = "x.so: failed to map segment from shared object"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "MemoryError"),
        (ImportError(LOADER), LOADER),
        (ImportError(f"\n\nREAD THIS\n\nOriginal error was: {LOADER}\n"), LOADER),
        (caused(RuntimeError("Failed to import"), ImportError(LOADER)), LOADER),
        (
            OSError(errno.ENOMEM, "Cannot allocate memory", "/x"),
            "Cannot allocate memory: '/x'",
        ),
        (RuntimeError("can't start new thread"), "can't start new thread"),
    ],
)
def test_what_finds_no_memory_later_ends_with_a_line(
    error: Exception, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def app() -> None:
        raise error

    commands = ModuleType("commands")
    monkeypatch.setattr(commands, "app", app, raising=False)
    monkeypatch.setitem(sys.modules, "hullft_ops.cli.app", commands)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    line = str(ended.value)
    assert line.startswith("hullft-ops: too little memory")
    assert line.endswith(said)
    assert "\n" not in line


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("another"),
        OSError(errno.ENOENT, "none"),
        ImportError("x.so: cannot allocate memory in static TLS block"),
    ],
)
def test_other_errors_are_raised(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def app() -> None:
        raise error

    commands = ModuleType("commands")
    monkeypatch.setattr(commands, "app", app, raising=False)
    monkeypatch.setitem(sys.modules, "hullft_ops.cli.app", commands)
    with pytest.raises(type(error)) as raised:
        cli.main()
    assert raised.value is error
