"""``hullft-ops info``, and what happens where the extra is not installed."""

import getpass
import importlib
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

from hullft_ops import _C, __version__, cli
from hullft_ops.bug_report import bug_report
from hullft_ops.cli.app import app
from hullft_ops.collect_env import VARIABLES, collect_env, format_env

RUN_WITHOUT = """
import sys
sys.modules.update(dict.fromkeys(sys.argv[1].split(",")))
sys.argv = ["hullft-ops", *sys.argv[2:]]
from hullft_ops.cli import main
main()
"""


def run_without(
    modules: str, *arguments: str, folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", RUN_WITHOUT, modules, *arguments]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False
    )


def test_info_as_json() -> None:
    result = CliRunner().invoke(app, ["info", "--json"])
    assert result.exit_code == 0
    env = json.loads(result.stdout)
    # Which of a wheel with CUDA lacks what torch.__version__ adds.
    assert env["versions"]["torch"] == metadata.version("torch")
    assert env["versions"]["hullft_ops"] == metadata.version("hullft_ops")
    assert env["versions"]["python"] == sys.version.split()[0]
    assert env["build"] == _C.build_info()
    assert {
        "compiler",
        "build_type",
        "cuda",
        "cuda_architectures",
        "torch_target",
    } <= set(env["build"])
    assert env["cpu"]["simd"] == _C.simd_level()
    assert env["cpu"]["threads"] == torch.get_num_threads()
    assert len(env["cuda_devices"]) == torch.cuda.device_count()


def test_info_as_text_has_a_line_for_every_value() -> None:
    result = CliRunner().invoke(app, ["info"])
    assert result.exit_code == 0
    shown = dict(re.findall(r"^  (.+?) {2,}(\S.*)$", result.stdout, re.MULTILINE))
    assert shown["torch"] == metadata.version("torch")
    for name, value in _C.build_info().items():
        assert shown[name] == (value or "none")


def test_info_names_cuda_devices_and_missing_packages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def version(package: str) -> str:
        if package == "peft":
            raise metadata.PackageNotFoundError
        return "1.2"

    card = SimpleNamespace(name="Card", major=9, minor=0, total_memory=80 * 2**30)
    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    text = format_env(collect_env())
    assert "Card (capability 9.0, 80 GiB)" in text
    assert "  peft                   not installed" in text


@pytest.mark.parametrize("module", ["collect_env", "bug_report"])
def test_python_dash_m_needs_torch_alone(module: str) -> None:
    code = (
        "import runpy, sys\n"
        "sys.modules.update(dict.fromkeys(['typer', 'rich', 'numpy', 'transformers']))\n"
        f"runpy.run_module('hullft_ops.{module}', run_name='__main__')"
    )
    command = [sys.executable, "-c", code]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "versions" in text
    assert _C.build_info()["compiler"] in text


def test_the_commands_leave_the_slow_parts_for_later() -> None:
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from hullft_ops.cli.app import app\n"
        "for arguments in (['--help'], ['demo', '--help'], ['info']):\n"
        "    assert CliRunner().invoke(app, arguments).exit_code == 0\n"
        "slow = {'transformers', 'pyarrow', 'matplotlib', 'hullft_ops.ttft'}\n"
        "sys.exit(str(slow & set(sys.modules)) if slow & set(sys.modules) else 0)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True
    )
    assert (result.returncode, result.stderr) == (0, "")


def test_version() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"hullft-ops {__version__}\n")


@pytest.mark.parametrize("command", ["adapt", "demo", "evaluate", "tune"])
def test_help_has_both_names_of_n_select(command: str) -> None:
    text = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).stdout
    assert re.search("--n-select, ?--steps", text)
    assert re.search("--allow-missing-weights +Load a model", text)


GROUP: Any = typer.main.get_command(app)
COMMANDS = list(GROUP.commands)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_and_no_type_for_a_flag(command: str) -> None:
    text = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).stdout
    assert "bool" not in text
    (example,) = re.findall(r"Example: hullft-ops (.*)", text)
    name, *arguments = shlex.split(example)
    assert name == command
    # Refuses an option that the command does not have.
    GROUP.commands[name].make_context(name, arguments)


def test_completion_completes_commands_and_can_be_installed() -> None:
    text = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).stdout
    assert re.search("--install-completion +Install completion", text)
    assert "bool" not in text
    asked = {
        "_HULLFT_OPS_COMPLETE": "complete_bash",
        "COMP_WORDS": "hullft-ops ",
        "COMP_CWORD": "1",
    }
    found = CliRunner().invoke(app, [], env=asked, prog_name="hullft-ops")
    assert sorted(found.stdout.split()) == sorted(COMMANDS)


def test_without_typer_the_command_names_the_extra() -> None:
    result = run_without("typer", "info")
    assert result.returncode == 1
    assert result.stderr.startswith(
        "hullft-ops needs typer: pip install '.[ttft]' in its checkout"
    )
    assert "python -m hullft_ops.collect_env" in result.stderr


def test_without_faiss_info_works_and_the_demo_names_the_extra(tmp_path: Path) -> None:
    assert run_without("faiss", "info").returncode == 0
    result = run_without("faiss", "demo", folder=tmp_path)
    assert result.returncode == 1
    assert (
        "\nhullft-ops needs faiss: pip install '.[ttft]' in its checkout\n"
        in result.stderr
    )


def test_an_import_that_fails_for_another_reason_is_raised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "hullft_ops.cli.app", ModuleType("commands"))
    with pytest.raises(ImportError, match="cannot import name 'app'"):
        cli.main()


def test_a_part_of_the_layer_that_is_missing_is_no_library(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "hullft_ops.ttft", raising=False)
    monkeypatch.setitem(sys.modules, "hullft_ops.ttft.store.datastore", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"hullft_ops\.ttft\.store\.datastore"
    ):
        importlib.import_module("hullft_ops.ttft")


def test_python_dash_m_is_the_command() -> None:
    command = [sys.executable, "-m", "hullft_ops", "info"]
    env = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    text = subprocess.run(
        command, capture_output=True, text=True, check=True, env=env
    ).stdout
    assert text == CliRunner().invoke(app, ["info"]).stdout


def test_report_has_the_versions_the_build_and_the_variables_that_matter() -> None:
    result = CliRunner().invoke(app, ["info", "--report"], env={"OMP_NUM_THREADS": "7"})
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert (lines[0], lines[-1]) == ("```text", "```")
    assert format_env(collect_env()) in result.stdout
    assert re.search(r"^  OMP_NUM_THREADS +7$", result.stdout, re.MULTILINE)


def test_report_tells_nothing_of_who_ran_it(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = {
        "HF_TOKEN": "hf_secret",
        "CUDA_VISIBLE_DEVICES": "/home/someone/devices",
        "OMP_PROC_BIND": "someone@somewhere",
        "MKL_NUM_THREADS": "",
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    text = bug_report()
    assert not any(value in text for value in secrets.values() if value)
    assert "HF_TOKEN" not in text
    assert re.search(
        r"^  CUDA_VISIBLE_DEVICES +\(set, not shown\)$", text, re.MULTILINE
    )
    assert re.search(r"^  MKL_NUM_THREADS +\(empty\)$", text, re.MULTILINE)
    assert str(Path.home()) not in text
    assert platform.node() not in text.split()
    assert getpass.getuser() not in text.split()


def test_report_where_no_variable_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert bug_report().endswith("environment\n  none of those that matter\n```")


@pytest.mark.parametrize("extra", [["--json"], ["somewhere"]])
def test_report_stands_alone(extra: list[str]) -> None:
    result = CliRunner().invoke(app, ["info", "--report", *extra])
    assert result.exit_code == 2
    assert "--report takes neither --json nor a datastore" in result.stderr
