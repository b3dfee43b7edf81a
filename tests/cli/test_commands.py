"""What all commands share: options from the classes that define them, errors, and Ctrl-C."""

import io
import logging
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import fields
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from tqdm import tqdm

from command import hullft_ops, succeeded
from hullft_ops import cli
from hullft_ops.cli.command import errors_of
from hullft_ops.distributed.workers import Workers
from hullft_ops.evaluation import measuring
from hullft_ops.evaluation.experiment import Experiment
from hullft_ops.evaluation.results import read_rows
from hullft_ops.ttft.adapter_training import AdapterConfig
from hullft_ops.ttft.models.loading import ModelConfig
from hullft_ops.ttft.store.corpus import IndexConfig
from hullft_ops.ttft.techniques import TTFTConfig
from hullft_ops.ttft.terminal import progress_shown, ticking, waiting
from processes import wait_for


def options_in(text: str) -> set[str]:
    return set(re.findall(r"--([a-z][a-z-]*)", text))


@pytest.mark.parametrize(
    ("command", "kind", "others"),
    [
        ("adapt", ModelConfig, set()),
        ("adapt", TTFTConfig, {"techniques"}),
        ("answer", ModelConfig, set()),
        ("answer", TTFTConfig, {"techniques"}),
        ("evaluate", Experiment, {"settings", "description"}),
        ("evaluate", TTFTConfig, {"techniques"}),
        ("evaluate", Workers, set()),
        ("index", IndexConfig, set()),
        ("train", AdapterConfig, set()),
    ],
)
def test_every_field_is_an_option_with_its_docstring(
    command: str, kind: Any, others: set[str]
) -> None:
    shown = succeeded(command, "--help").stdout
    names = {field.name for field in fields(kind)} - others

    assert names <= {name.replace("-", "_") for name in options_in(shown)}

    for name in names:
        docstring = kind.__pydantic_fields__[name].description
        if docstring is not None:
            assert " ".join(docstring.split()[:3]) in " ".join(shown.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["adapt", "--prompt", "x", "--store", "y", "--lr", "0"], "--lr must be"),
        (["index", "x", "--output", "y", "--workers", "0"], "--workers must be"),
    ],
)
def test_a_value_out_of_range_ends_with_one_line(
    words: list[str], message: str
) -> None:
    result = hullft_ops(*words)

    assert result.code == 2
    assert result.stderr.startswith(f"hullft-ops {words[0]}: {message}")
    assert len(result.stderr.splitlines()) == 1


def test_help_lists_the_commands() -> None:
    result = succeeded("--help")
    for name in cli.COMMANDS:
        assert f"• {name} " in result.stdout

    # A sentence goes on where the docstring begins a new line.
    assert "prompt that repeats is answered" in succeeded("answer", "--help").stdout


@pytest.mark.parametrize(
    "arguments", [[], ["tune"], ["adapt", "--steps", "3"], ["evaluate", "--lr", "x"]]
)
def test_a_wrong_command_line_ends_with_2(arguments: list[str]) -> None:
    result = hullft_ops(*arguments)

    assert result.code == 2
    assert result.stderr
    assert "Traceback" not in result.stderr


def test_ctrl_c_says_what_to_run_again_and_that_works(
    models_of: list[object],
    corpus_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = ["evaluate", *models_of, "--corpus", corpus_file, "--limit", 2]
    arguments += ["--method", "knn", "hullft", "--n-select", 2]
    scores_of = measuring.scores_of
    calls = []

    def interrupted(*rest: object, **options: object) -> object:
        calls.append(rest)
        # The first pays for allocations; each prompt has one more without adaptation.
        if len(calls) > 5:
            raise KeyboardInterrupt

        return scores_of(*rest, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(measuring, "scores_of", interrupted)
        result = hullft_ops(*arguments)

    assert result.code == 130
    assert result.last.startswith("hullft-ops evaluate: interrupted: run the same")
    assert "Traceback" not in result.stderr

    file = Path("results.jsonl")
    lines = file.read_bytes()

    assert len(read_rows(file)) == 3

    succeeded(*arguments)

    assert file.read_bytes().startswith(lines)
    assert len(read_rows(file)) == 6


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


@pytest.mark.parametrize(
    "shown", [lambda: ticking(tqdm(total=1)), lambda: waiting("adapting")]
)
def test_a_clock_moves_in_a_terminal(
    shown: Callable[[], AbstractContextManager[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress_shown(), shown():
        wait_for(lambda: "00:01" in terminal.getvalue(), seconds=30)


def test_errors_that_are_not_expected_are_raised() -> None:
    for error in (KeyError("a mistake of ours"), ModuleNotFoundError("a typo of ours")):
        with pytest.raises(type(error)), errors_of("adapt"):
            raise error


def test_a_missing_library_ends_with_one_line(
    models_of: list[object], corpus_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    result = hullft_ops(
        *["index", corpus_file, "--output", "out", *models_of[2:], "--engine", "ray"]
    )

    assert result.code == 2
    assert result.last.startswith("hullft-ops index: engine ray needs ray: pip install")


def test_ctrl_c_while_libraries_are_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "import_module", interrupted)

    assert hullft_ops("train").code == 130


def test_the_version_is_that_of_the_package() -> None:
    assert succeeded("--version").stdout == f"{metadata.version('hullft_ops')}\n"


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
        [sys.executable, "-c", code, "report"],
        cwd=Path(cli.__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = result.stderr.splitlines()

    assert result.stdout == "2\n2\n"

    for library, line in zip(("tyro", "transformers"), lines, strict=True):
        assert library in line
        assert "ttft" in line
