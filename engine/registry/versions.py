"""Ranges of versions, as npm writes them: ^1.2, ~1.2.3, >=1.0 <2, 1.x, *."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from semver import Version

MAX_RANGE = 100  # characters
WHOLE = 3  # numbers of a whole version

Bound = Callable[[Version], bool]

_NUMBER = r"(0|[1-9]\d{0,8}|[xX*])"
_PARTIAL = re.compile(
    rf"v?{_NUMBER}(?:\.{_NUMBER})?(?:\.{_NUMBER})?(?:-([0-9A-Za-z.-]+))?(?:\+[0-9A-Za-z.-]+)?"
)
_TERM = re.compile(r"(\^|~|>=|<=|>|<|=)?\s*([^\s,<>=~^]+)")


@dataclass(slots=True)
class Range:
    """Versions that fulfil every bound. A pre-release does so only when the range names one of the same version:
    who asks for ^1.2 does not mean 2.0.0-alpha, nor 1.3.0-alpha.
    """

    bounds: list[Bound]
    prereleases: list[tuple[int, int, int]]

    def __contains__(self, version: Version) -> bool:
        if version.prerelease and (version.major, version.minor, version.patch) not in self.prereleases:
            return False
        return all(bound(version) for bound in self.bounds)


def parse_range(text: str) -> Range | None:
    """The range that the text means; None when it means none. Commas and spaces both say "and"."""
    if len(text) > MAX_RANGE:
        return None
    rest = _TERM.sub("", text).replace(",", "").strip()
    terms = _TERM.findall(text)
    if rest or not terms:
        return None
    made = Range([], [])
    for operator, partial in terms:
        match = _PARTIAL.fullmatch(partial)
        if match is None or not _add(made, operator, match.groups()):
            return None
    return made


def _add(made: Range, operator: str, parts: tuple[str | None, ...]) -> bool:
    """Add the bounds of one term. False for one that makes no sense."""
    numbers: list[int] = []
    for part in parts[:3]:
        if part is None or part in "xX*":
            break
        numbers.append(int(part))
    prerelease = parts[3]
    if prerelease is not None:
        if len(numbers) < WHOLE:
            return False
        made.prereleases.append((numbers[0], numbers[1], numbers[2]))
    try:
        major, minor, patch = [*numbers, 0, 0, 0][:WHOLE]
        low = Version(major, minor, patch, prerelease=prerelease)
    except ValueError:
        return False
    made.bounds += _bounds(operator, numbers, low)
    return True


def _bounds(operator: str, numbers: list[int], low: Version) -> list[Bound]:
    """What one term asks of a version; nothing where it is a bare star."""
    above = _next(operator, numbers)
    if operator == "<":
        return [lambda version: version < low]
    if operator == ">":
        return [(lambda version: version > low) if above is None else (lambda version: version >= above)]
    if operator == "<=":
        return [(lambda version: version <= low) if above is None else (lambda version: version < above)]
    if not numbers:
        return []
    if operator == ">=":
        return [lambda version: version >= low]
    return [(lambda version: version == low) if above is None else (lambda version: low <= version < above)]


def _next(operator: str, numbers: list[int]) -> Version | None:
    """The first version that is too new for the term; None where the version is whole and stands for itself."""
    if operator == "^":
        kept = next((place for place, number in enumerate(numbers) if number), len(numbers) - 1)
    elif operator == "~":
        kept = min(1, len(numbers) - 1)
    elif len(numbers) == WHOLE:
        return None
    else:
        kept = len(numbers) - 1
    if kept < 0:
        return None
    bumped = [*numbers[:kept], numbers[kept] + 1, 0, 0][:3]
    return Version(*bumped)
