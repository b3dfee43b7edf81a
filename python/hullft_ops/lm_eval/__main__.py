"""The harness's own command, ``python -m hullft_ops.lm_eval``, with the model ``hullft``."""

import sys

from lm_eval.__main__ import cli_evaluate

from hullft_ops.ttft.errors import InputError

if __name__ == "__main__":
    try:
        cli_evaluate()
    except InputError as error:
        sys.exit(f"hullft_ops.lm_eval: {error}")
