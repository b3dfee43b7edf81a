"""The block of text for a bug report; ``hullft-ops info --report`` prints it too."""

from hullft_ops.collect_env import bug_report

if __name__ == "__main__":
    print(bug_report())
