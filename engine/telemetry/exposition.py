"""Metrics as text: what a scrape reads, in Prometheus' format and in OpenMetrics, and how many names it may hold.

Written here and not by the client library, which takes five times as long: a scrape of 500 models is some 100,000
lines, and nobody is served meanwhile. A test holds both to the same samples.
"""

from collections.abc import Iterable, Iterator

from engine.figures import Counted, Distribution, Figure, Values

MAX_VALUES = 1_000
"""Values of one label, before those that come later stand as "other"."""

OTHER = "other"
PLAIN = "text/plain; version=0.0.4; charset=utf-8"
OPEN_METRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"

Family = Figure | Distribution


class Names:
    """The values that each label has had: so many at most, and those that come later are "other".

    Who was once there stays, so that no counter ever moves from one name to another.
    """

    def __init__(self, most: int = MAX_VALUES) -> None:
        self._most = most
        self._known: dict[str, dict[str, str]] = {}

    def of(self, label: str, value: str) -> str:
        """The value itself, or "other"."""
        known = self._known.setdefault(label, {})
        found = known.get(value)
        if found is None:
            if len(known) >= self._most:
                return OTHER
            found = known[value] = value
        return found

    def fold(self, figure: Figure) -> Figure:
        """The same with names that are known; what goes by others becomes one."""
        labels, of = figure.labels, self.of
        folded: Values = {}
        is_whole = True
        for values, number in figure.values.items():
            names = tuple([of(label, value) for label, value in zip(labels, values, strict=True)])
            if names not in folded:
                folded[names] = number
            else:
                before, is_whole = folded[names], False
                folded[names] = max(before, number) if figure.largest else before + number
            is_whole = is_whole and names == values
        return figure if is_whole else figure._replace(values=folded)


def wants_open_metrics(accept: str) -> bool:
    """Whether somebody who accepts this reads OpenMetrics, and no less gladly than anything else."""
    weights: dict[str, float] = {}
    for part in accept.lower().split(","):
        kind, *parameters = [each.strip() for each in part.split(";")]
        version, weight = "1.0.0", 1.0
        for parameter in parameters:
            name, _, value = parameter.partition("=")
            if name == "version":
                version = value
            elif name == "q":
                weight = _number(value)
        if kind != "application/openmetrics-text" or version == "1.0.0":
            weights[kind] = max(weights.get(kind, 0.0), weight)
    wanted = weights.get("application/openmetrics-text", 0.0)
    return wanted > 0 and wanted >= weights.get("text/plain", 0.0)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def text_of(families: Iterable[Family], *, is_open: bool = False) -> str:
    """All of it, in Prometheus' text format, or as OpenMetrics."""
    lines: list[str] = []
    for family in families:
        lines += _lines(family, is_open=is_open)
    if is_open:
        lines.append("# EOF\n")
    return "".join(lines)


def _lines(family: Family, *, is_open: bool) -> Iterator[str]:
    if isinstance(family, Distribution):
        yield _head(family.name, family.help_text, "histogram", is_open=is_open)
        for values in sorted(family.values):
            yield from _buckets(family.name, family.labels, values, family.values[values])
        return
    name = family.name if family.is_gauge else f"{family.name}_total"
    kind = "gauge" if family.is_gauge else "counter"
    yield _head(family.name if is_open else name, family.help_text, kind, is_open=is_open)
    for values in sorted(family.values):
        told = _pairs(family.labels, values)
        whose = f"{{{told}}}" if told else ""
        yield f"{name}{whose} {float(family.values[values])!r}\n"


def _head(name: str, help_text: str, kind: str, *, is_open: bool) -> str:
    told = help_text.replace("\\", r"\\").replace("\n", r"\n")
    if is_open:
        told = told.replace('"', r"\"")
    return f"# HELP {name} {told}\n# TYPE {name} {kind}\n"


def _buckets(name: str, labels: tuple[str, ...], values: tuple[str, ...], counted: Counted) -> Iterator[str]:
    told = _pairs(labels, values)
    head = f'{name}_bucket{{{told}{"," if told else ""}le="'
    count = 0
    for bound, number in zip([*map(str, counted.bounds), "+Inf"], counted.counts, strict=True):
        count += number
        yield f'{head}{bound}"}} {count}.0\n'
    whose = f"{{{told}}}" if told else ""
    yield f"{name}_count{whose} {count}.0\n{name}_sum{whose} {float(counted.total)!r}\n"


def _pairs(labels: tuple[str, ...], values: tuple[str, ...]) -> str:
    pairs = sorted(zip(labels, values, strict=True))
    return ",".join([f'{label}="{_escaped(value)}"' for label, value in pairs])


def _escaped(value: str) -> str:
    if "\\" in value or "\n" in value or '"' in value:
        return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
    return value
