"""The ``hullft-ops`` command. Each of its commands is a function in the file of its name."""

import sys
from importlib import import_module, metadata

from hullft_ops._extras import missing_library

COMMANDS = ("adapt", "demo", "evaluate", "index", "report", "train")


def main() -> None:
    """Run the command that ``sys.argv`` names. It exits with 2 if it cannot do its work."""
    if sys.argv[1:] == ["--version"]:
        print(metadata.version("hullft_ops"))
        return
    # Only what the command needs is imported.
    names: tuple[str, ...] = COMMANDS
    if len(sys.argv) > 1 and sys.argv[1] in COMMANDS:
        names = (sys.argv[1],)
    try:
        from hullft_ops.cli.command import run_command

        commands = {}
        for name in names:
            module = import_module(f"hullft_ops.cli.{name}")
            commands[name] = getattr(module, name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("hullft_ops"):
            raise
        sys.exit(missing_library("hullft-ops", error.name))
    except KeyboardInterrupt:
        sys.exit(130)
    run_command(commands)
