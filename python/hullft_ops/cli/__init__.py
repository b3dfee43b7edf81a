"""The ``hullft-ops`` command. Each of its commands is a function in the file of its name."""

import sys
from importlib import import_module, metadata

from hullft_ops._extras import needed_by

COMMANDS = (
    "adapt",
    "answer",
    "demo",
    "evaluate",
    "index",
    "report",
    "serve",
    "train",
    "verify",
)


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
        with needed_by("hullft-ops"):
            from hullft_ops.cli.command import run_command

            modules = {name: import_module(f"hullft_ops.cli.{name}") for name in names}
    except ModuleNotFoundError:
        raise
    except ImportError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    run_command({name: getattr(module, name) for name, module in modules.items()})
