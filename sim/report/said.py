"""What is said of a run, as sentences and rows: the same in HTML, in Markdown and beside another run."""

import shlex

from engine.telemetry.phases import PHASES
from sim.breakdown import by_slowness
from sim.certainty import told
from sim.checks import Check, number
from sim.compare import Row, differences_beside
from sim.detectors.finding import some
from sim.plots import left_out, plots
from sim.runs import Run

KEY_FIGURES = (
    ("completed", "requests completed"),
    ("rejected", "requests rejected"),
    ("failed", "requests failed"),
    ("timed_out", "requests timed out"),
    ("cancelled", "requests cancelled"),
    ("second_tries", "requests that needed a second try"),
    ("request_throughput_per_s", "completed requests a second"),
    ("output_throughput_tokens_per_s", "output tokens a second"),
    ("token_hit_ratio", "prompt tokens found in the cache"),
    ("mean_ttft_s", "TTFT mean, s"),
    ("p50_ttft_s", "TTFT p50, s"),
    ("p99_ttft_s", "TTFT p99, s"),
    ("mean_tpot_s", "TPOT mean, s"),
    ("p50_tpot_s", "TPOT p50, s"),
    ("p99_tpot_s", "TPOT p99, s"),
    ("mean_e2e_s", "E2E mean, s"),
    ("p50_e2e_s", "E2E p50, s"),
    ("p99_e2e_s", "E2E p99, s"),
    *((f"mean_phase_{name}_s", f"of the mean E2E, {name}, s") for name in PHASES),
)
FINDING_HEADS = ("finding", "who", "how much", "when, s", "what", "requests that show it", "told from")
SLOW_HEADS = ("completed requests", "count", "mean time, s", "spent on, s")
DIFFERENCE_HEADS = ("figure", "first", "second", "difference", "+-", "n", "p (Holm)", "verdict")
BESIDE_HEADS = ("beside", "figure", "this", "that", "difference", "+-", "n", "p (Holm)", "verdict")


def headline(run: Run) -> str:
    """The verdict first; what an interrupted run shows is none."""
    passed = sum(check.verdict == "pass" for check in run.checks)
    verdict = "interrupted" if run.manifest["interrupted"] else run.verdict
    return f"{verdict.upper()}: {passed} of {len(run.checks)} checks hold in {run.name}"


def facts(run: Run) -> list[str]:
    """What the run was, in sentences."""
    manifest = run.manifest
    played = (
        f"Strategy {manifest['strategy']} on executor {manifest['executor']}, seed {manifest['seed']}, traffic "
        f"{manifest['trace']['source']}: {len(run.requests)} requests in {manifest['virtual_s']:.1f} s of virtual "
        f"time, {manifest['wall_s']:.1f} s of real time."
    )
    sentences = [played, f"Digest {manifest['digest']}."]
    if run.measured:
        measured = ", ".join(f"{name} {number(value)}" for name, value in run.measured.items())
        sentences.append(f"Measured on the real clock: {measured}.")
    if manifest["interrupted"]:
        sentences.insert(
            0,
            f"Interrupted: {manifest['in_flight']} requests were in flight; only what had finished is in here.",
        )
    return sentences


def check_table(run: Run) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Heads and rows; what the earlier system says of the same thing stands beside ours, where it says something."""
    heads: tuple[str, ...] = ("verdict", "check", "value", "bound", "rests on")
    rows: list[tuple[str, ...]] = [(*_check_cells(check), check.note) for check in run.checks]
    if any(check.published for check in run.checks):
        heads = (*heads[:4], "published", heads[4])
        rows = [(*row[:4], check.published, row[4]) for row, check in zip(rows, run.checks, strict=True)]
    return heads, rows


def _check_cells(check: Check) -> tuple[str, str, str, str]:
    return check.verdict, check.name, number(check.value), f"{check.op} {number(check.limit)}"


def figures(run: Run) -> list[tuple[str, ...]]:
    """The key figures, latencies with what they rest on, a dash for those that do not exist."""
    summary = run.summary
    return [(label, told(run, key, summary[key])) for key, label in keys(run)]


def keys(run: Run) -> list[tuple[str, str]]:
    """The names of the key figures, and what they are called."""
    shares = [(f"share_{replica}", f"share of replica {replica}") for replica in run.replicas]
    return [*KEY_FIGURES, *shares]


def looked_at(run: Run) -> list[str]:
    """What the detectors and the estimate of regret say, in sentences."""
    detectors = "overload, herding, priority inversion, head-of-line blocking and thrashing"
    count = len(run.findings)
    first = f"Looked for were {detectors}; "
    first += f"{some(count, 'finding')}, the worst first." if count else "nothing of that was found."
    summary = run.summary
    if not summary["n_regret"]:
        return [first]
    regret = (
        f"In hindsight, another replica would have saved {number(summary['mean_regret_e2e_s'])} s a request, "
        f"{100 * (summary['regret_e2e_ratio'] or 0.0):.3g} % of the end-to-end time: an estimate over "
        f"{summary['n_regret']} choices, of which {100 * summary['best_choice_ratio']:.3g} % were the best ones."
    )
    return [first, regret]


def found(run: Run) -> list[tuple[str, ...]]:
    """The findings, a row each."""
    return [
        (
            one.detector,
            one.subject,
            f"{one.severity:.1%} of {one.measure}",
            f"{one.begin_s:.4g} to {one.end_s:.4g}",
            one.says,
            ", ".join(map(str, one.requests)),
            f"at least {one.threshold:.0%}: {one.reason}",
        )
        for one in run.findings
    ]


def slow_and_fast(run: Run) -> list[tuple[str, ...]]:
    """What completed requests spent their time on, by how slow they were: the mean of each part that took any."""
    done = run.whole.completed
    buckets = by_slowness(run.parts.loc[done.index])
    rows: list[tuple[str, ...]] = []
    for name, bucket in buckets.iterrows():
        total = sum(bucket[f"{part}_s"] for part in PHASES)
        took = [(bucket[f"{part}_s"], part) for part in PHASES if bucket[f"{part}_s"] > 0]
        parts = ", ".join(f"{part} {number(float(seconds))}" for seconds, part in sorted(took, reverse=True))
        rows.append((str(name), f"{bucket['count']:.0f}", number(float(total)), parts))
    return rows


def beside(run: Run) -> list[tuple[str, ...]]:
    """How the runs beside this one differ from it, a row a figure."""
    return [(name, *difference_cells(row)) for name, rows in differences_beside(run).items() for row in rows]


def difference_cells(row: Row) -> tuple[str, ...]:
    """A row of DIFFERENCE_HEADS."""
    one = row.difference
    return (
        row.figure,
        number(row.first),
        number(row.second),
        f"{one.mean:+.3g}",
        "" if one.half_width is None else f"{one.half_width:.2g}",
        str(one.count),
        "" if row.p_value is None else f"{row.p_value:.2g}",
        row.verdict,
    )


def shown(run: Run) -> list[str]:
    """The pictures that show something."""
    missing = left_out(run)
    return [name for name in plots if name not in missing]


def not_shown(run: Run) -> list[str]:
    """Why other pictures are missing, in a sentence."""
    missing = left_out(run)
    reasons = "; ".join(f"{name.replace('_', ' ')} ({reason})" for name, reason in missing.items())
    return [f"Left out, as there would be nothing to see: {reasons}."] if missing else []


def command(run: Run) -> str:
    """The line that plays this run again."""
    overrides = list(run.manifest["overrides"])
    if not any(line.startswith("scenario=") for line in overrides):
        overrides.insert(0, f"scenario={run.name}")
    return shlex.join(["python", "-m", "sim", *overrides])
