"""The harness's own command line. By now the package has registered ``hullft``."""

from lm_eval.__main__ import cli_evaluate

if __name__ == "__main__":
    cli_evaluate()
