"""Runs ``hullft-ops`` in this process."""

import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from unittest import mock

from hullft_ops.cli import main


@dataclass(frozen=True)
class Result:
    """What a command printed, and how it ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def last(self) -> str:
        """The last line of stderr."""
        return self.stderr.splitlines()[-1]


def hullft_ops(*arguments: object) -> Result:
    """Run a command with these arguments."""
    words = ["hullft-ops", *(str(argument) for argument in arguments)]
    stdout, stderr, code = io.StringIO(), io.StringIO(), 0
    with (
        mock.patch.object(sys, "argv", words),
        redirect_stdout(stdout),
        redirect_stderr(stderr),
    ):
        try:
            main()
        except SystemExit as end:
            # None after --help.
            code = int(end.code or 0)

    return Result(code, stdout.getvalue(), stderr.getvalue())


def succeeded(*arguments: object) -> Result:
    """Run a command that must succeed."""
    result = hullft_ops(*arguments)

    assert result.code == 0, result.stderr

    return result
