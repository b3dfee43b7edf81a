"""Result files: the measurements of a run, the machine and the versions."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.timing import Comparison, Timing
from hullft_ops.ttft._files import replacing

FORMAT = 1


@dataclass(frozen=True)
class Results:
    """One run.

    Attributes:
        device, grid: the arguments of the run.
        commit: commit of the sources, with ``-dirty`` if they had changed since.
        date: when the run ended, in UTC.
        threads: CPU threads of ours and of every peer.
        environment: what `hullft_ops.collect_env.collect_env` returns, and the processor's name.
        comparisons: every case.
    """

    device: str
    grid: str
    commit: str
    date: str
    threads: int
    environment: dict[str, Any]
    comparisons: list[Comparison]

    def group(self, name: str) -> list[Comparison]:
        return [
            comparison for comparison in self.comparisons if comparison.group == name
        ]

    @property
    def groups(self) -> list[str]:
        return list(dict.fromkeys(comparison.group for comparison in self.comparisons))

    def find(self, group: str, **case: Any) -> Comparison | None:
        """The first of a group's cases that has these parameters."""
        for comparison in self.group(group):
            if case.items() <= comparison.case.items():
                return comparison
        return None

    def write(self, path: Path) -> None:
        """Write JSON. The file appears whole or not at all."""
        text = json.dumps({"format": FORMAT, **asdict(self)}, indent=1, allow_nan=False)
        with replacing(path) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> "Results":
        """Raises:
        FileNotFoundError: no such file.
        ValueError: not a result file of this format.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            found = values.pop("format")
            if found != FORMAT:
                raise ValueError(f"format must be {FORMAT}, got {found!r}")
            comparisons = [comparison(item) for item in values.pop("comparisons")]
            return cls(**values, comparisons=comparisons)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"Results.read: {path} is not a result file: {error}"
            ) from error


def comparison(values: dict[str, Any]) -> Comparison:
    """The inverse of ``dataclasses.asdict``."""
    return Comparison(
        **{
            **values,
            "ours": Timing(**values["ours"]),
            "peers": {
                name: Timing(**timing) for name, timing in values["peers"].items()
            },
            "roofline": values["roofline"] and Timing(**values["roofline"]),
        }
    )
