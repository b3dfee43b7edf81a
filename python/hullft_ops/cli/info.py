"""``hullft-ops info``: what runs here."""

from hullft_ops.collect_env import format_env


def info(*, report: bool = False) -> None:
    """Print versions, build, processor, GPUs, threads and environment variables that matter.

    Args:
        report: print it as the block of a bug report.
    """
    environment = format_env()
    print(f"```json\n{environment}\n```" if report else environment)
