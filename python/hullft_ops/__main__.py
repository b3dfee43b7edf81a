"""``python -m hullft_ops`` is the ``hullft-ops`` command."""

from hullft_ops.cli import main

if __name__ == "__main__":
    main()
