"""libFuzzer's loop around border.call, by atheris: see README.md."""

import shlex
import sys

import atheris

with atheris.instrument_imports(include=["hullft_ops", "border", "drawn_values"]):
    import border

from replay import limit_memory


def main() -> None:
    limit_memory()
    # -merge starts the program again, in a shell.
    program = shlex.join([sys.executable, sys.argv[0]])
    atheris.Setup([program, *sys.argv[1:]], border.call)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
