"""Head-of-line blocking: short requests that wait for a long one, although there is a place for them.

Who is short and who is long is told by the tokens of the prompt that had to be computed: the long ones have at least
eight times as many as the short ones. There are three ways in which a short one's time is lost to long ones at its
replica; a moment at which all places of the batch were taken counts in none of them:

- it stood in the line while the *head* of it, a long one, did not fit into the KV, and it would have;
- it stood in the line, or had begun, while a long one that began before it was *prefilled*;
- it *decoded* while a long one was prefilled, and went slower than those who met none.

That KV would have held it is known where the replica has held as much at another time.
"""

from dataclasses import dataclass

import numpy as np

from sim.breakdown import MISSING
from sim.detectors.finding import Finding, evidence, some, span_s
from sim.history import Flags, Floats, History, Integers, Lane, Places

THRESHOLD = 0.10
"""Of the end-to-end time of the short ones. Prompts of ordinary traffic differ too, and meet: that costs up to five
percent in mixes A to D."""

RATIO = 8  # times as long
SHORT = (25.0, 50.0, 75.0, 90.0)  # percentiles up to which a prompt is tried as short; the worst one counts
LEAST = 20  # short requests that were blocked


def detect(history: History) -> list[Finding]:
    """One finding for each replica at which that happened. O(n log n)."""
    found = []
    for name, lane in zip(history.replicas, history.lanes, strict=True):
        seen = lane.first_ns != MISSING
        if seen.sum() < LEAST or history.is_shared:
            continue
        worst = max(
            (
                _lost(history, lane, bound)
                for bound in np.unique(np.percentile(history.new_tokens[lane.rows], SHORT))
            ),
            key=lambda lost: lost.severity,
        )
        hit = np.flatnonzero(worst.total_ns > 0)
        if worst.severity < THRESHOLD or len(hit) < LEAST:
            continue
        begin_s, end_s = span_s(lane.queued_ns[hit])
        parts = {
            "in line behind one that did not fit": worst.head_ns,
            "behind a long prefill": worst.prefill_ns,
            "decoding beside a long prefill": worst.decode_ns,
        }
        where = max(parts, key=lambda part: float(parts[part].sum()))
        found.append(
            Finding(
                "head-of-line blocking",
                f"replica {name}",
                worst.severity,
                "the end-to-end time of short requests",
                THRESHOLD,
                "prompts of ordinary traffic differ too, and meet",
                begin_s,
                end_s,
                len(hit),
                evidence(history.request_id[lane.rows[hit]], worst.total_ns[hit]),
                f"{some(len(hit), 'request')} of up to {worst.bound:.0f} new prompt tokens waited for longer ones "
                f"although places were free, most of it {where}",
            )
        )
    return found


@dataclass(slots=True)
class Lost:
    """What each request of a lane lost to long ones, in ns; 0 for one that is not short."""

    bound: float
    head_ns: Floats
    prefill_ns: Floats
    decode_ns: Floats
    severity: float

    @property
    def total_ns(self) -> Floats:
        return self.head_ns + self.prefill_ns + self.decode_ns


def _lost(history: History, lane: Lane, bound: float) -> Lost:
    """What the requests of at most `bound` new tokens lost to those of `RATIO` times as many."""
    tokens = history.new_tokens[lane.rows]
    answered = (lane.first_ns != MISSING) & (lane.first_ns >= lane.started_ns)
    short = answered & (tokens <= bound)
    long = np.flatnonzero(answered & (tokens >= RATIO * bound))
    spent = float((lane.finished_ns - lane.queued_ns)[short].sum())
    none = np.zeros(len(lane.rows))
    if not len(long) or not spent:
        return Lost(bound, none, none, none, 0.0)
    free = lane.running(lane.queued_ns) < history.max_batch
    under_way = Spans.of(lane.started_ns[long], lane.first_ns[long])
    # a long one that began behind it is none that it waits for
    until_ns = np.minimum(lane.first_ns, _over(lane, long, lane.started_ns))
    waited = np.where(
        short & free, under_way.within(lane.queued_ns, np.maximum(until_ns, lane.queued_ns)), 0.0
    )
    in_line = lane.started_ns - lane.queued_ns
    rest = in_line - np.minimum(under_way.within(lane.queued_ns, lane.started_ns), in_line)
    head = np.where(short & free, np.minimum(_behind_head(history, lane, bound), rest), 0.0)
    decoded = _slowed(history, lane, short, under_way)
    severity = float((head + waited + decoded).sum()) / spent
    return Lost(bound, head, waited, decoded, min(1.0, severity))


def _over(lane: Lane, long: Places, at_ns: Integers) -> Integers:
    """When the prefill of the last long one ends that had begun by each of these times; -1 where none had."""
    order = long[np.argsort(lane.started_ns[long], kind="stable")]
    ends = np.append(MISSING, np.maximum.accumulate(lane.first_ns[order]))
    found: Integers = ends[np.searchsorted(lane.started_ns[order], at_ns, side="right")]
    return found


def _behind_head(history: History, lane: Lane, bound: float) -> Floats:
    """How long each stood in line while its head, a long one, did not fit, and it would have."""
    tokens, total = history.new_tokens[lane.rows], history.tokens[lane.rows]
    place = np.minimum(np.searchsorted(lane.last_start_ns, lane.queued_ns, side="right"), len(lane.rows) - 1)
    is_other = place < np.arange(len(lane.rows))
    is_long = tokens[place] >= RATIO * bound
    held = _held(lane, total, lane.queued_ns)
    at_starts = _held(lane, total, lane.started_ns)
    fits = held + total <= at_starts.max(initial=0)
    waited = np.minimum(lane.started_ns[place], lane.started_ns) - lane.queued_ns
    return np.where(is_other & is_long & fits, np.maximum(waited, 0), 0.0)


def _held(lane: Lane, total: Integers, at_ns: Integers) -> Integers:
    """The tokens of all that run at these times, as they will be in the end."""
    by_start, by_end = np.argsort(lane.started_ns, kind="stable"), np.argsort(lane.finished_ns, kind="stable")
    came, left = (np.append(0, np.cumsum(total[order])) for order in (by_start, by_end))
    started = np.searchsorted(lane.starts_ns, at_ns, side="right")
    found: Integers = came[started] - left[np.searchsorted(lane.ends_ns, at_ns, side="right")]
    return found


def _slowed(history: History, lane: Lane, short: Flags, under_way: "Spans") -> Floats:
    """How much longer each short one decoded than at the pace of those that met no long prefill."""
    gaps = history.output_tokens[lane.rows] - 1
    spans = (lane.finished_ns - lane.first_ns).astype(float)
    met = under_way.within(lane.first_ns, lane.finished_ns)
    calm = short & (gaps > 0) & (met == 0)
    if not calm.any():
        return np.zeros(len(lane.rows))
    pace = float(np.median(spans[calm] / gaps[calm]))
    return np.where(short & (gaps > 0), np.clip(spans - gaps * pace, 0, met), 0.0)


@dataclass(slots=True)
class Spans:
    """Stretches of time, joined where they overlap."""

    begins: Floats
    ends: Floats
    before: Floats
    """The length of all stretches before each one."""

    @classmethod
    def of(cls, begins_ns: Integers, ends_ns: Integers) -> "Spans":
        order = np.argsort(begins_ns, kind="stable")
        begins, ends = begins_ns[order], np.maximum.accumulate(ends_ns[order])
        opens = np.append(True, begins[1:] > ends[:-1])
        starts = begins[opens].astype(float)
        last = np.append(np.flatnonzero(opens)[1:] - 1, len(begins) - 1)
        stops = ends[last].astype(float)
        return cls(starts, stops, np.append(0.0, np.cumsum(stops - starts)[:-1]))

    def within(self, begin_ns: Integers, end_ns: Integers) -> Floats:
        """How much of each of those stretches lies in these."""
        return np.maximum(self._until(end_ns) - self._until(begin_ns), 0.0)

    def _until(self, at_ns: Integers) -> Floats:
        place = np.searchsorted(self.begins, at_ns, side="right") - 1
        inside = np.maximum(place, 0)
        found: Floats = self.before[inside] + np.minimum(at_ns, self.ends[inside]) - self.begins[inside]
        return np.where(place >= 0, found, 0.0)
