"""libFuzzer's loop around border.call, by atheris: see README.md."""

import sys

import atheris

with atheris.instrument_imports(include=["hullft_ops", "border"]):
    import border

from replay import limit_memory


def main() -> None:
    limit_memory()
    atheris.Setup(sys.argv, border.call)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
