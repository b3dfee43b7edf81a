"""The outcomes of kept inputs, and of bytes at random, one a line: see README.md."""

import faulthandler
import random
import resource
import sys
from pathlib import Path

import border


def limit_memory() -> None:
    """What asks for more gets an error, on machines of any size."""
    limit = 12 << 30
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def main() -> None:
    faulthandler.enable()
    limit_memory()
    generator = random.Random(0)
    kept = [
        path.read_bytes()
        for path in sorted((Path(__file__).parent / "corpus").iterdir())
    ]
    drawn = [
        generator.randbytes(generator.randrange(90)) for _ in range(int(sys.argv[1]))
    ]

    for data in kept + drawn:
        print(border.call(data) or "returned", flush=True)


if __name__ == "__main__":
    main()
