"""The host's costs: what the real engine does around its steps, from logs of runs that are not compared."""

from collections.abc import Iterator
from collections.abc import Sequence as Listing
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pandas as pd

from engine.errors import BadSettings
from engine.settings import EngineSettings, ExecutorSettings
from sim.fidelity.device import Door, HostCosts, Spread
from sim.fidelity.fitting import FEWEST_STEPS, in_line, predictions, step_factors
from sim.fidelity.live import LiveRun
from sim.fidelity.steplog import Step, StepLog
from sim.fidelity.track import Track
from sim.least_squares import Floats, non_negative

MOST_ARRIVALS = 8  # in a turn that tells of costs: who comes in a crowd costs less than who comes alone
MOST_DELAYS = 4_096
FEW_RESTS = 10
NEVER: Floats = np.empty(0)
UNMEASURED = Track()

Flags = npt.NDArray[np.bool_]


@dataclass(slots=True, kw_only=True)
class Turns:
    """The turns of a machine that never was without work between them, a row each, in ns and counts.

    A turn lasts from the end of one step to the end of the next: the host's work for both lies in it. What the
    yardstick took of it does not.
    """

    took_ns: Floats
    pace: Floats  # of the machine, as the yardstick says
    yards: Floats  # how often it was taken
    said_ns: Floats  # by the cost model, of the step alone
    switches: Floats  # 1 where the step before was another model's
    beginners: Floats
    began_before: Floats  # the beginners of the turn before: their first tokens are told in this one
    arrivals: Floats
    leavers: Floats
    left_before: Floats  # the leavers of the turn before: not all that they leave to do is done in theirs
    kept_tokens: Floats
    reads: Floats  # prefixes that came from files
    is_prefill: Flags
    batch: Floats  # sequences in the step

    def __len__(self) -> int:
        return len(self.took_ns)


@dataclass(slots=True, kw_only=True)
class Starts:
    """Steps before which the machine had nothing to do: a row each."""

    took_ns: Floats  # from when the request that ended the rest was let in to the end of the step
    pace: Floats
    said_ns: Floats
    beginners: Floats


def host_costs(
    runs: Listing[LiveRun],
    settings: EngineSettings,
    models: dict[str, ExecutorSettings],
    tracks: Listing[Track] = (),
) -> HostCosts:
    """Costs that make turns by the cost models those of the logs of `runs`, in the mean and in their spread.

    `tracks`: the machine's pace in each of these runs. Raises BadSettings when there are too few steps to tell.
    """
    logs = [run.log for run in runs]
    count = sum(len(log.steps) for log in logs)
    if count < FEWEST_STEPS:
        raise BadSettings(
            f"calibration saw {count} steps, but needs at least {FEWEST_STEPS}: give it more requests"
        )
    tracks = tracks or [UNMEASURED] * len(runs)
    factors = step_factors(logs, settings, models, tracks)
    said = [predictions(log.steps, settings, models, factors) for log in logs]
    arrivals, reads = [run.arrivals_ns for run in runs], [run.reads_ns for run in runs]
    found = joined([turns_of(*each) for each in zip(logs, said, arrivals, reads, tracks, strict=True)])
    costs = turn_costs(found)
    costs.factors = factors
    tried = [run.tried_ns for run in runs]
    starts = [starts_of(*each) for each in zip(logs, said, tried, reads, tracks, strict=True)]
    costs.wake_ns = waking_ns(starts, costs)
    costs.in_ns = delays([idle_delays(run) for run in runs])
    costs.door = door_of(runs, float(costs.in_ns.min()))
    costs.tier_ns = tier_waits(runs)
    costs.first_ns = delays([between(run, "first_token_ns", "first_ns") for run in runs])
    costs.end_ns = delays([between(run, "last_token_ns", "last_ns") for run in runs])
    return costs


def turns_of(
    log: StepLog,
    said_ns: Floats,
    arrivals_ns: Floats,
    reads_ns: Floats = NEVER,
    track: Track = UNMEASURED,
) -> Turns:
    """The turns of a log; `said_ns` is what a cost model says of each of its steps.

    The machine had work all the time when the step is asked for before the one before it ends, or does something for
    somebody who was there already.
    """
    steps = log.steps
    over = [each.steps_over for each in log.left]
    left = np.bincount(over, minlength=len(steps) + 1)
    kept = np.bincount(over, weights=[each.kept_tokens for each in log.left], minlength=len(steps) + 1)
    rows = [number for number in range(1, len(steps)) if follows(steps[number - 1], steps[number])]
    ended = np.array([step.ended_ns for step in steps], dtype=np.float64)
    arrived, read = (
        np.searchsorted(np.sort(times), ended, side="right") for times in (arrivals_ns, reads_ns)
    )
    shapes = [steps[number].shape for number in rows]
    before = np.array(rows, dtype=np.int64) - 1
    found, begins_ns, ends_ns = in_line(steps), ended[before], ended[rows]
    return Turns(
        took_ns=ends_ns - begins_ns - track.taken_ns(begins_ns, ends_ns),
        pace=track.over(begins_ns),
        yards=track.count(begins_ns, ends_ns),
        said_ns=said_ns[rows],
        switches=np.array([found[number].is_switch for number in rows], dtype=np.float64),
        beginners=np.array([shape.beginners for shape in shapes], dtype=np.float64),
        began_before=np.array([found[number].began for number in rows], dtype=np.float64),
        arrivals=(arrived[rows] - arrived[before]).astype(np.float64),
        leavers=left[rows].astype(np.float64),
        left_before=left[before].astype(np.float64),
        kept_tokens=kept[rows].astype(np.float64),
        reads=(read[rows] - read[before]).astype(np.float64),
        is_prefill=np.array([shape.has_prefill for shape in shapes], dtype=np.bool_),
        batch=np.array([len(shape.chunks) + len(shape.decodes) for shape in shapes], dtype=np.float64),
    )


def follows(before: Step, step: Step) -> bool:
    """Whether the machine had something to do between these two."""
    shape = step.shape
    return step.asked_ns <= before.ended_ns or bool(shape.decodes) or shape.beginners < len(shape.chunks)


def starts_of(
    log: StepLog,
    said_ns: Floats,
    tried_ns: Floats,
    reads_ns: Floats = NEVER,
    track: Track = UNMEASURED,
) -> Starts:
    """The steps of a log that ended a rest, where the request is known that ended it.

    Not those before which a prefix came from files: the wait for it is no cost of a start.
    """
    arrivals, reads = np.sort(tried_ns), np.sort(reads_ns)
    rows, begins = [], []
    for number in range(1, len(log.steps)):
        before, step = log.steps[number - 1], log.steps[number]
        if follows(before, step):
            continue
        first = int(np.searchsorted(arrivals, before.ended_ns))
        has_read = np.diff(np.searchsorted(reads, (before.ended_ns, step.ended_ns), side="right")).any()
        if first < len(arrivals) and arrivals[first] < step.asked_ns and not has_read:
            rows.append(number)
            begins.append(arrivals[first])
    begins_ns = np.array(begins, dtype=np.float64)
    ends_ns = np.array([log.steps[number].ended_ns for number in rows], dtype=np.float64)
    return Starts(
        took_ns=ends_ns - begins_ns - track.taken_ns(begins_ns, ends_ns),
        pace=track.over(begins_ns),
        said_ns=said_ns[rows],
        beginners=np.array([log.steps[number].shape.beginners for number in rows], dtype=np.float64),
    )


def joined(parts: Listing[Turns]) -> Turns:
    """The turns of several runs as those of one."""
    return Turns(
        **{name: np.concatenate([getattr(part, name) for part in parts]) for name in Turns.__slots__}
    )


def turn_costs(turns: Turns) -> HostCosts:
    """What turns are made of: least squares without negative costs, weighted so that their sum is met.

    Turns in which a crowd comes at once tell nothing of what a request costs that comes alone. What is left to do in
    the turn after a sequence has left is charged when it leaves.
    """
    columns = (
        turns.said_ns,
        np.ones(len(turns)),
        turns.switches,
        turns.beginners,
        turns.began_before,
        turns.arrivals,
        turns.leavers,
        turns.left_before,
        turns.kept_tokens,
        turns.reads,
        turns.yards,
    )
    rows = np.stack(columns, axis=1) * turns.pace[:, None]
    weights = (turns.arrivals <= MOST_ARRIVALS) / np.sqrt(np.maximum(turns.said_ns * turns.pace, 1.0))
    found = non_negative(rows * weights[:, None], turns.took_ns * weights)
    found[0] = found[0] or 1.0
    scale, step, switch, begin, after, arrive, leave, later, keep, read, yard = found.tolist()
    costs = HostCosts(scale=scale, step_ns=step, begin_ns=begin, leave_ns=leave + later)
    costs.switch_ns, costs.after_ns, costs.arrive_ns = switch, after, arrive
    costs.keep_ns, costs.read_ns, costs.yard_ns = keep, read, yard
    whole_ns = rows @ found
    ratios = turns.took_ns / np.maximum(whole_ns, 1.0)
    said_ns = said_of(turns, costs)
    costs.decode_spread = spread(said_ns[~turns.is_prefill], ratios[~turns.is_prefill])
    costs.prefill_spread = spread(said_ns[turns.is_prefill], ratios[turns.is_prefill])
    costs.ranks = [
        costs.spread_of(has_prefill=has_prefill).rank(said, ratio)
        for said, ratio, has_prefill in zip(said_ns.tolist(), ratios.tolist(), turns.is_prefill, strict=True)
    ]
    return costs


def said_of(turns: Turns | Starts, costs: HostCosts) -> Floats:
    """What is said of turns before chance: the step and the host's work for it."""
    said_ns = turns.said_ns * costs.scale + costs.step_ns + turns.beginners * costs.begin_ns
    if isinstance(turns, Starts):
        return said_ns
    return said_ns + turns.switches * costs.switch_ns + turns.began_before * costs.after_ns


def foreseen_ns(turns: Turns, costs: HostCosts) -> Floats:
    """What the simulation takes for such turns, in the mean over chance."""
    said_ns = said_of(turns, costs)
    means = [
        costs.spread_of(has_prefill=has_prefill).mean(said)
        for said, has_prefill in zip(said_ns.tolist(), turns.is_prefill, strict=True)
    ]
    besides_ns = (
        turns.arrivals * costs.arrive_ns
        + turns.leavers * costs.leave_ns
        + turns.kept_tokens * costs.keep_ns
        + turns.reads * costs.read_ns
        + turns.yards * costs.yard_ns
    )
    foreseen: Floats = (said_ns * np.array(means) + besides_ns) * turns.pace
    return foreseen


def foreseen_starts_ns(starts: Starts, costs: HostCosts) -> Floats:
    """What the simulation takes for steps that end a rest, in the mean over chance."""
    said_ns = said_of(starts, costs)
    means = np.array([costs.prefill_spread.mean(said) for said in said_ns])
    foreseen: Floats = (said_ns * means + costs.wake_ns) * starts.pace
    return foreseen


def spread(said_ns: Floats, ratios: Floats) -> Spread:
    """Ratios in the order of what was said."""
    order = np.argsort(said_ns, kind="stable")
    return Spread(said_ns[order].tolist(), ratios[order].tolist())


def waking_ns(starts: Listing[Starts], costs: HostCosts) -> float:
    """What a step takes more when the machine had rested; may be negative, by what the host does for a step at most.

    The mean without the 2 % at either end, drawn towards 0 where rests are few: it stands beside the whole prefill of
    the request that ended one.
    """
    all_ns = np.concatenate([(each.took_ns - foreseen_starts_ns(each, costs)) / each.pace for each in starts])
    if not len(all_ns):
        return 0.0
    cut = len(all_ns) // 50  # 2 %
    middle = np.sort(all_ns)[cut : len(all_ns) - cut]
    mean_ns = float(middle.mean()) * len(all_ns) / (len(all_ns) + FEW_RESTS)
    return max(mean_ns, -costs.step_ns - costs.begin_ns)


def tier_waits(runs: Listing[LiveRun]) -> Floats:
    """What each calm request waited for a prefix that had to be read from files; each one, if no calm one had to.

    In a crowd they wait for one another, and that is not the way's length.
    """
    calm = np.concatenate([from_files(before_crowd(run.both)) for run in runs])
    return calm if len(calm) else np.concatenate([from_files(run.both) for run in runs])


def from_files(table: pd.DataFrame) -> Floats:
    """How long each completed request of a table waited whose prefix was on ssd, in part at least."""
    rows = table[(table["outcome"] == "completed") & (table["cached_tokens_ssd"] > 0)]
    waits: Floats = (rows["queued_ns"] - rows["tried_ns"]).to_numpy(dtype=np.float64)
    return waits


def door_of(runs: Listing[LiveRun], least_ns: float) -> Door:
    """How calm requests were let in that came to a busy machine, `least_ns` after their intended time.

    Not those that came while the yardstick had it: these wait for its end.
    """
    found = sorted(entry for run in runs for entry in comers(run, least_ns))
    return Door(*map(list, zip(*found, strict=True))) if found else Door()


def comers(run: LiveRun, least_ns: float) -> Iterator[tuple[float, float, bool]]:
    """Each of them: what was left of the turn, when it was let in, and whether that was after the turn.

    Who was let in after it, but before the next batch was formed, was in time.
    """
    steps, table = run.log.steps, before_crowd(run.both).dropna(subset=["tried_ns"])
    goes_on = [False, *(follows(before, step) for before, step in pairwise(steps)), False]
    ended = np.array([step.ended_ns for step in steps], dtype=np.float64)
    came = table["intended_ns"].to_numpy(dtype=np.float64) + least_ns
    tried = table["tried_ns"].to_numpy(dtype=np.float64)
    is_measured = Track(readings=run.log.readings).has_at(came)
    turns = np.searchsorted(ended, came, side="right")
    for at_ns, let_in_ns, turn, is_out in zip(came, tried, turns, is_measured, strict=True):
        if turn == len(steps) or is_out:
            continue
        ends_ns, begins_ns = ended[turn], ended[turn - 1] if goes_on[turn] else steps[turn].asked_ns
        if begins_ns > at_ns:
            continue
        in_time_ns = steps[turn + 1].asked_ns if goes_on[turn + 1] else ends_ns
        if let_in_ns <= in_time_ns:
            yield ends_ns - at_ns, max(0.0, min(let_in_ns, ends_ns) - at_ns), False
        else:
            yield ends_ns - at_ns, let_in_ns - ends_ns, True


def between(run: LiveRun, told: str, heard: str) -> Floats:
    """From a time of the engine's to the client's for it, of each completed request that was not in the crowd."""
    table = run.both
    table = before_crowd(table[table["outcome"] == "completed"])
    found: Floats = (table[heard] - table[told]).dropna().to_numpy(dtype=np.float64)
    return found


def before_crowd(table: pd.DataFrame) -> pd.DataFrame:
    """The requests that were over when the last ones came; all of them where that is none.

    A calibration run ends with a crowd: what its requests wait for one another on the way is not the way's length.
    """
    calm = table[(table["last_ns"] <= table["intended_ns"].max()).fillna(value=False)]
    return calm if len(calm) else table


def idle_delays(run: LiveRun) -> Floats:
    """From the intended time until the engine lets it in, of requests that found it resting; of all if none did."""
    table, steps = before_crowd(run.both).dropna(subset=["tried_ns"]), run.log.steps
    intended = table["intended_ns"].to_numpy(dtype=np.float64)
    late: Floats = table["tried_ns"].to_numpy(dtype=np.float64) - intended
    rests = [(a.ended_ns, b.asked_ns) for a, b in pairwise(steps) if not follows(a, b)]
    if not rests:
        return late
    begins, ends = np.array(rests, dtype=np.float64).T
    rest = np.searchsorted(begins, intended) - 1
    is_idle = (rest >= 0) & (intended < ends[rest]) & ~Track(readings=run.log.readings).has_at(intended)
    return late[is_idle] if is_idle.any() else late


def delays(found: Listing[Floats]) -> Floats:
    """Delays to draw from; none where there are none."""
    values = np.concatenate(found)[-MOST_DELAYS:]
    return values if len(values) else np.zeros(1)


def residuals(turns: Turns, costs: HostCosts, source: str) -> pd.DataFrame:
    """What turns took beside what the simulation takes for them: a row each, for pictures."""
    return pd.DataFrame(
        {
            "source": source,
            "kind": np.where(turns.is_prefill, "prefill", "decode"),
            "batch": turns.batch.astype(np.int64),
            "foreseen_ns": foreseen_ns(turns, costs),
            "took_ns": turns.took_ns,
        }
    )
