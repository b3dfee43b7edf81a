"""Methods of test-time finetuning, measured on the same prompts."""

from dataclasses import asdict, dataclass, fields
from statistics import fmean
from typing import Any

from hullft_ops.ttft.finetuner import AdaptationReport


@dataclass(frozen=True)
class Method:
    """A way to adapt: ``selection`` is None for none at all; ``key`` names it in a report."""

    key: str
    label: str
    selection: str | None
    refresh: int = 1


METHODS = (
    Method("none", "no adaptation", None),
    Method("knn", "kNN", "knn"),
    Method("hullft_refresh1", "HullFT refresh 1", "hullft", 1),
    Method("hullft_refresh2", "HullFT refresh 2", "hullft", 2),
)


@dataclass(frozen=True)
class Run:
    """One method on one prompt; ``report`` is None without adaptation."""

    bits_per_byte: float
    report: AdaptationReport | None = None


@dataclass(frozen=True)
class Mean:
    """The mean of a method's runs, times in seconds; without adaptation all but the bits are 0."""

    bits_per_byte: float
    seconds_embed: float
    seconds_search: float
    seconds_select: float
    seconds_finetune: float
    forward_backward_passes: float
    optimizer_steps: float
    support_size: float

    @property
    def seconds_total(self) -> float:
        return (
            self.seconds_embed + self.seconds_search + self.seconds_select + self.seconds_finetune
        )


@dataclass(frozen=True)
class PromptRuns:
    """Every method's run, by its key, on one held-out passage of the document ``source``."""

    source: str
    text: str
    runs: dict[str, Run]


@dataclass(frozen=True)
class Comparison:
    """What `METHODS` did on the prompts; ``context`` holds configuration and versions."""

    context: dict[str, Any]
    prompts: list[PromptRuns]

    def mean(self, key: str) -> Mean:
        """The mean of a method's runs over the prompts, each prompt with the same weight."""
        runs = [prompt.runs[key] for prompt in self.prompts]
        of_reports = [field.name for field in fields(Mean)[1:]]
        return Mean(
            fmean(run.bits_per_byte for run in runs),
            *(fmean(getattr(run.report, name, 0.0) for run in runs) for name in of_reports),
        )

    def relative_to_none(self, key: str) -> float:
        """The method's mean bits per byte over that without adaptation, less 1."""
        return self.mean(key).bits_per_byte / self.mean("none").bits_per_byte - 1

    def prompts_below(self, key: str, other: str) -> int:
        """On how many prompts a method scores fewer bits per byte than another."""
        return sum(p.runs[key].bits_per_byte < p.runs[other].bits_per_byte for p in self.prompts)

    def verdicts(self) -> dict[str, Any]:
        """Who is below whom in mean bits per byte, and on how many prompts.

        ``hullft_below_knn`` and ``hullft_below_none`` hold for every HullFT setting.
        """
        mean = {method.key: self.mean(method.key).bits_per_byte for method in METHODS}
        hullft = [method.key for method in METHODS if method.selection == "hullft"]
        return {
            "knn_below_none": mean["knn"] < mean["none"],
            "hullft_below_none": all(mean[key] < mean["none"] for key in hullft),
            "hullft_below_knn": all(mean[key] < mean["knn"] for key in hullft),
            "prompts": len(self.prompts),
            "prompts_below_none": {k: self.prompts_below(k, "none") for k in ("knn", *hullft)},
            "prompts_below_knn": {k: self.prompts_below(k, "knn") for k in hullft},
        }

    def as_json(self) -> dict[str, Any]:
        """Every number, per method and per prompt, as values that JSON can hold."""
        return {
            **self.context,
            "methods": {method.key: self._method_json(method) for method in METHODS},
            "verdicts": self.verdicts(),
            "prompts": [asdict(prompt) for prompt in self.prompts],
        }

    def _method_json(self, method: Method) -> dict[str, Any]:
        mean = self.mean(method.key)
        return {
            "label": method.label,
            "refresh": method.refresh if method.selection else None,
            **asdict(mean),
            "seconds_total": mean.seconds_total,
            "relative_to_none": self.relative_to_none(method.key),
        }
