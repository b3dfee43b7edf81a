"""The content of an evaluation's report, without its layout."""

from dataclasses import dataclass, field

from hullft_ops.ttft.evaluation.config import family
from hullft_ops.ttft.evaluation.results import MERGE, Row
from hullft_ops.ttft.evaluation.statistics import CONFIDENCE, NONE, Interval, Measurements, at_time

_EXAMPLES = 4
# Between these two, text can change only its own direction. There are four such marks, in pairs.
ISOLATE, END_ISOLATE = "\u2068", "\u2069"
_ISOLATES = dict.fromkeys(range(0x2066, 0x206A))
Cells = tuple[str, ...]


@dataclass(frozen=True)
class Section:
    """A heading with paragraphs, and a table or a picture below them.

    ``verbatim``: the table's last column has texts whose layout matters.
    """

    title: str
    paragraphs: list[str]
    header: Cells = ()
    table: list[Cells] = field(default_factory=list)
    picture: str | None = None
    verbatim: bool = False


def report_sections(measured: Measurements, picture: str) -> list[Section]:
    """The sections of a report; ``picture`` names the file of the plot."""
    sections = [_overview(measured), _quality_and_time(measured), _plot(measured, picture)]
    if len(leaders(measured)) > 1:
        sections += [_between_methods(measured), _equal_time(measured)]
    return [*sections, _by_domain(measured), _conditions(measured)]


def example_section(measured: Measurements) -> Section:
    """The prompts that the best configuration helps most and least, each with its beginning."""
    best = min(measured.configs[1:], key=measured.mean_bits)
    ranked = sorted(measured.rows[best], key=_gain)
    shown = ranked[:_EXAMPLES] + ranked[_EXAMPLES:][-_EXAMPLES:]
    return Section(
        "Prompts helped most and least",
        [f"By {_name(best)}; each with how its text begins."],
        ("domain", "bits per byte before", "after", "change", "text"),
        [
            (
                row.domain,
                f"{row.bits_per_byte_before:.3f}",
                f"{row.bits_per_byte_after:.3f}",
                f"{_gain(row):+.1%}",
                row.excerpt,
            )
            for row in shown
        ],
        verbatim=True,
    )


def leaders(measured: Measurements) -> list[str]:
    """The configuration with the fewest bits per byte, for each method and refresh.

    A method with experts or with texts in the context is another method, see `family`.
    """
    best: dict[tuple[str, int], str] = {}
    for config in measured.configs[1:]:
        settings = measured.settings(config)
        key = family(settings), settings["refresh"]
        if key not in best or measured.mean_bits(config) < measured.mean_bits(best[key]):
            best[key] = config
    return list(best.values())


def hurt_sentences(names: list[str]) -> list[str]:
    """Says which configurations are worse than no adaptation; nothing where none is."""
    if not names:
        return []
    shown = ", ".join(names)
    return [f"Adapting hurts: on average, prompts take more bits with {shown} than without."]


def _overview(measured: Measurements) -> Section:
    first = next(iter(measured.rows.values()))[0]
    counts = ", ".join(f"{_name(d)} {sum(measured.domains == d)}" for d in _domains(measured))
    lines = [
        f"{len(measured.prompts)} held-out prompts ({counts}), {len(measured.rows)} "
        f"configurations, seed {first.seed}. A prompt's own text is scored; the methods retrieve "
        "for it and never train on it. Every prompt has the same weight.",
        f"Brackets hold {CONFIDENCE:.0%} intervals of a paired bootstrap over the prompts.",
    ]
    if measured.incomplete:
        lines.append(f"{measured.incomplete} prompts are left out: not every configuration ran.")
    for config, count in measured.failed.items():
        lines.append(f"Left out: {_name(config)}, whose loss was not finite on {count} prompts.")
    return Section("What was run", lines)


def _quality_and_time(measured: Measurements) -> Section:
    quality = ("configuration", "bits per byte", "against none", "better on", "worse on")
    merging = [MERGE] * any(MERGE in measured.mean_stages(config) for config in measured.configs)
    times = ("embed and search", "select", *merging, "finetune", "total")
    header = (*quality, *times, "passes", "texts")
    table: list[Cells] = [(NONE, f"{measured.mean_bits(NONE):.4f}", *[""] * (len(header) - 2))]
    count, hurt = len(measured.prompts), []
    for config in sorted(measured.configs[1:], key=measured.mean_bits):
        if measured.mean_bits(config) > measured.mean_bits(NONE):
            hurt.append(_name(config))
        stages = measured.mean_stages(config)
        table.append(
            (
                config,
                f"{measured.mean_bits(config):.4f}",
                _percent(measured.relative_bits(config, NONE)),
                f"{measured.prompts_below(config, NONE)} of {count}",
                f"{measured.prompts_below(NONE, config)} of {count}",
                f"{stages['embed'] + stages['search']:.3f} s",
                f"{1e3 * stages['select']:.2f} ms",
                *(f"{stages.get(stage, 0):.3f} s" for stage in (*merging, "finetune")),
                f"{measured.mean_seconds(config):.3f} s",
                f"{measured.mean_of(config, 'passes'):.1f}",
                f"{measured.mean_of(config, 'support_size'):.1f}",
            )
        )
    lines = ["Means over the prompts.", *hurt_sentences(hurt)]
    return Section("Quality and time", lines, header, table)


def _plot(measured: Measurements, picture: str) -> Section:
    text = "The line joins the configurations that no other beats in both quality and time."
    return Section("Quality against time", [text], picture=picture)


def _between_methods(measured: Measurements) -> Section:
    chosen = leaders(measured)
    table: list[Cells] = []
    for number, other in enumerate(chosen):
        for config in chosen[number + 1 :]:
            bits = measured.relative_bits(config, other)
            speed = measured.finetuning_speed(config, other)
            table.append(
                (
                    config,
                    other,
                    _percent(bits),
                    _verdict(bits),
                    f"{measured.prompts_below(config, other)} of {len(measured.prompts)}",
                    _times(speed),
                )
            )
    header = (
        "configuration",
        "against",
        "bits per byte",
        "so it is",
        "better on",
        "finetuning speed",
    )
    text = (
        "This table compares the best configurations of each method and refresh. If a method has "
        "several configurations here, its best is chosen on these same prompts, which flatters it "
        "a little."
    )
    return Section("Between methods", [text], header, table)


def _equal_time(measured: Measurements) -> Section:
    """Each leader against every other method at the leader's mean time."""
    table: list[Cells] = []
    for config in leaders(measured):
        seconds = measured.mean_seconds(config)
        method = family(measured.settings(config))
        for rival in sorted({family(measured.settings(c)) for c in measured.rows} - {method}):
            other = at_time(measured, rival, seconds)
            if other is not None:
                bits = measured.relative_to(config, other.bits)
                table.append(
                    (
                        config,
                        f"{seconds:.3f} s",
                        " to ".join(other.configs),
                        f"{other.seconds:.3f} s",
                        _percent(bits),
                        _verdict(bits),
                    )
                )
    text = (
        "This table compares the best configuration of each method and refresh with every other "
        "method at the same mean time. Two configurations of the other method enclose that time; "
        "of all such pairs, the one with the best mean counts. Each prompt's bits per byte are "
        "interpolated linearly in the mean seconds of the two. If the other method gains nothing "
        "from more time, it takes less. A method that is never that fast has no line."
    )
    header = ("configuration", "takes", "against", "takes", "bits per byte", "so it is")
    return Section("At equal time", [text], header, table)


def _by_domain(measured: Measurements) -> Section:
    domains = _domains(measured)
    none = measured.bits[0]
    table: list[Cells] = [
        (NONE, *(f"{none[measured.domains == name].mean():.4f}" for name in domains))
    ]
    for config in leaders(measured):
        own = measured.bits_of(config)
        cells = (
            f"{own[measured.domains == name].mean():.4f} "
            f"{_percent(measured.relative_bits(config, NONE, name))}"
            for name in domains
        )
        table.append((config, *cells))
    text = "Bits per byte, and the change against no adaptation."
    return Section("By domain", [text], ("configuration", *domains), table)


def _conditions(measured: Measurements) -> Section:
    rows = [row for of_config in measured.rows.values() for row in of_config]
    versions = sorted({_name(f"{k} {v}") for row in rows for k, v in row.versions.items() if v})
    threads = sorted({row.threads for row in rows})
    lines = [
        f"Run {_name(rows[0].run)}; {', '.join(versions)}; "
        f"torch threads {', '.join(map(str, threads))}.",
        "Seconds are wall-clock, on that machine under its load at the time.",
    ]
    if len({(repr(sorted(row.versions.items())), row.threads) for row in rows}) > 1:
        lines.append("Not all rows are of the same versions, device and threads.")
    return Section("Conditions", lines)


def _domains(measured: Measurements) -> list[str]:
    return sorted(set(measured.domains.tolist()))


def _gain(row: Row) -> float:
    return (row.bits_per_byte_after or 0.0) / row.bits_per_byte_before - 1


def _name(text: str) -> str:
    """The name, marked so that it cannot change the direction of the sentence around it."""
    if text.isascii():
        return text
    return f"{ISOLATE}{text.translate(_ISOLATES)}{END_ISOLATE}"


def _percent(interval: Interval) -> str:
    if interval.low != interval.low:
        return f"{interval.value:+.1%}"
    return f"{interval.value:+.1%} [{interval.low:+.1%}, {interval.high:+.1%}]"


def _times(interval: Interval) -> str:
    if interval.low != interval.low:
        return f"{interval.value:.2f} x"
    return f"{interval.value:.2f} x [{interval.low:.2f}, {interval.high:.2f}]"


def _verdict(interval: Interval) -> str:
    if not interval.excludes_zero:
        return "not told apart"
    return "better" if interval.value < 0 else "worse"
