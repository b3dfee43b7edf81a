"""What all commands share: options from the classes that define them, errors, and Ctrl-C."""

import json
import logging
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from importlib import metadata
from pathlib import Path

import pytest

from command import hullft_ops, succeeded
from hullft_ops import _C, cli
from hullft_ops.cli import parsing
from hullft_ops.cli.adapt import adapt
from hullft_ops.cli.errors import errors_of
from hullft_ops.cli.evaluate import evaluate
from hullft_ops.evaluation import run
from hullft_ops.evaluation.experiment import Experiment
from hullft_ops.evaluation.results import read_rows
from hullft_ops.ttft.config import TTFTConfig


@dataclass(frozen=True, kw_only=True)
class Warm(TTFTConfig):
    """A configuration of a later version."""

    warmup: int = 0
    """Steps before the first one."""


def options_in(text: str) -> set[str]:
    return set(re.findall(r"--([a-z][a-z-]*)", text))


@pytest.mark.parametrize("command", ["adapt", "evaluate"])
def test_every_field_of_the_configuration_is_an_option(command: str) -> None:
    result = succeeded(command, "--help")
    names = {field.name.replace("_", "-") for field in fields(TTFTConfig)}

    assert names <= options_in(result.stdout)
    assert "Adam's learning rate." in result.stdout


def test_every_field_of_an_experiment_is_an_option() -> None:
    names = {name.replace("_", "-") for name in Experiment.model_fields}
    shown = options_in(succeeded("evaluate", "--help").stdout)

    assert names - shown == {"settings", "description"}


@pytest.fixture
def run_warm(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Runs a command of the later version; returns what it printed."""

    def run_warm(*words: object) -> str:
        monkeypatch.setattr(sys, "argv", ["hullft-ops", *map(str, words)])
        parsing.run_command({"adapt": adapt, "evaluate": evaluate}, Warm)
        return capsys.readouterr().out

    return run_warm


@pytest.mark.parametrize("command", ["adapt", "evaluate"])
def test_a_field_of_a_subclass_is_in_the_help(
    command: str,
    run_warm: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        run_warm(command, "--help")

    assert "Steps before the first one." in capsys.readouterr().out


def test_adapt_takes_a_field_of_a_subclass(
    models_of: list[object],
    store: Path,
    texts: list[str],
    run_warm: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    configs = []

    def recording(*arguments: object) -> None:
        configs.append(arguments[-1])
        raise ValueError("stop")

    monkeypatch.setattr("hullft_ops.cli.adapt.TestTimeFinetuner", recording)
    inputs = [*models_of, "--store", store, "--prompt", texts[0]]
    with pytest.raises(SystemExit):
        run_warm("adapt", *inputs, "--warmup", 3)

    assert configs == [Warm(n_select=20, warmup=3)]


def test_evaluate_takes_a_field_of_a_subclass(
    models_of: list[object], corpus_file: Path, run_warm: Callable[..., str]
) -> None:
    inputs = [*models_of, "--corpus", corpus_file, "--limit", 1]
    run_warm("evaluate", *inputs, "--method", "knn", "--n-select", 1, "--warmup", 0, 5)

    assert [row.config for row in read_rows(Path("results.jsonl"))] == [
        "knn n=1 refresh=1 lr=5e-05",
        "knn n=1 refresh=1 lr=5e-05 warmup=5",
    ]


def test_help_lists_the_commands() -> None:
    result = succeeded("--help")
    for name in cli.COMMANDS:
        assert f"• {name} " in result.stdout


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_one_name_for_one_thing(command: str) -> None:
    shown = options_in(succeeded(command, "--help").stdout)
    assert not shown & {"out", "datastore", "steps", "results", "source"}


@pytest.mark.parametrize(
    "arguments", [[], ["tune"], ["adapt", "--steps", "3"], ["evaluate", "--lr", "x"]]
)
def test_a_wrong_command_line_ends_with_2(arguments: list[str]) -> None:
    result = hullft_ops(*arguments)
    assert result.code == 2
    assert result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "words", [["evaluate", "--method", "knn", "hullft"], ["demo"]], ids=lambda w: w[0]
)
def test_ctrl_c_says_what_to_run_again_and_that_works(
    words: list[str],
    models_of: list[object],
    corpus_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = [*words, *models_of, "--corpus", corpus_file, "--limit", 2]
    arguments += ["--n-select", 2]
    score = run.score_text
    calls = []

    def interrupted(*rest: object, **options: object) -> object:
        calls.append(rest)
        if len(calls) > 2:
            raise KeyboardInterrupt
        return score(*rest, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(run, "score_text", interrupted)
        result = hullft_ops(*arguments)

    assert result.code == 130
    assert result.last.startswith(f"hullft-ops {words[0]}: interrupted: run the same")
    assert "Traceback" not in result.stderr

    [file] = tmp_path.rglob("results.jsonl")
    lines = file.read_bytes()

    assert len(read_rows(file)) in (2, 3)

    succeeded(*arguments)
    assert file.read_bytes().startswith(lines)
    assert len(read_rows(file)) in (4, 6)


def test_ctrl_c_ends_every_command_with_130() -> None:
    with pytest.raises(SystemExit) as end, errors_of("adapt"):
        raise KeyboardInterrupt

    assert end.value.code == 130


def test_warnings_and_log_records_do_not_steer_the_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    shown, made = warnings.showwarning, logging.getLogRecordFactory()
    with errors_of("adapt"):
        warnings.warn("TestTimeFinetuner: a pool of 3\x1b[2J", stacklevel=1)
        warnings.warn("of a library\n\x1b[2J", FutureWarning, stacklevel=1)
        handler = logging.StreamHandler(sys.stderr)
        record = logging.getLogRecordFactory()("x", 40, "", 1, "in %s", ("\x1b",), None)
        handler.emit(record)

    assert warnings.showwarning is shown
    assert logging.getLogRecordFactory() is made
    assert capsys.readouterr().err.splitlines() == [
        "hullft-ops adapt: TestTimeFinetuner: a pool of 3\\x1b[2J",
        "hullft-ops adapt: of a library\\x0a\\x1b[2J",
        "in \\x1b",
    ]


def test_folders_nested_deeply_end_with_one_line(tmp_path: Path) -> None:
    deep = tmp_path / "deep"
    folders = [deep]
    for _ in range(1500):
        folders.append(folders[-1] / "a")
    for folder in folders:
        folder.mkdir()
    (tmp_path / "corpus.jsonl").write_text("{}")
    try:
        for arguments in (
            [deep, "--output", "out"],
            ["corpus.jsonl", "--output", deep],
        ):
            result = hullft_ops("index", *arguments, "--overwrite")

            assert result.code == 2
            assert result.last.startswith(
                "hullft-ops index: an input is nested too deep"
            )
    finally:
        for folder in reversed(folders):
            folder.rmdir()


def test_errors_that_are_not_expected_are_raised() -> None:
    with pytest.raises(KeyError), errors_of("adapt"):
        raise KeyError("a mistake of ours")


def test_info_has_versions_and_build() -> None:
    result = succeeded("info")
    environment = json.loads(result.stdout)

    assert environment["versions"]["torch"] == metadata.version("torch")
    assert environment["build"] == _C.build_info()

    report = succeeded("info", "--report")
    assert report.stdout == f"```json\n{result.stdout}```\n"


def test_a_missing_library_is_named_with_its_extra() -> None:
    code = """if True:
        import sys
        from hullft_ops.cli import main
        for library in ("tyro", "transformers"):
            sys.modules[library] = None
            try:
                main()
            except SystemExit as end:
                print(end)
            del sys.modules[library]
    """
    result = subprocess.run(
        [sys.executable, "-c", code, "info"],
        cwd=Path(cli.__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = result.stdout.splitlines()

    assert len(lines) == 2
    for library, line in zip(("tyro", "transformers"), lines, strict=True):
        assert library in line
        assert "ttft" in line
