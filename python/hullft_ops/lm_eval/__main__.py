"""The harness's own command, ``python -m hullft_ops.lm_eval``, with the model ``hullft``."""

from lm_eval.__main__ import cli_evaluate

if __name__ == "__main__":
    cli_evaluate()
