"""The report of a run: one HTML file that needs nothing else, and the same facts as Markdown."""

import base64
import json
import shlex
from html import escape
from pathlib import Path
from typing import Any

from engine.telemetry.phases import PHASES
from sim.breakdown import by_slowness
from sim.certainty import told
from sim.checks import Check, noted, number
from sim.detectors.finding import some
from sim.plots import CAPTIONS, left_out, plots
from sim.runs import Run

STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; margin: 1rem 0; }
td, th { border-bottom: 1px solid #8884; padding: .3rem .6rem; text-align: left; }
td.figure { text-align: right; font-variant-numeric: tabular-nums; }
.verdict { font-weight: 700; } .pass { color: #00734f; } .fail { color: #c04a00; } .inconclusive { color: #8a6d00; }
@media (prefers-color-scheme: dark) {
  .pass { color: #3ec99a; } .fail { color: #ff8a4c; } .inconclusive { color: #e6c34d; }
}
figure { margin: 2rem 0; break-inside: avoid; } img { max-width: 100%; background: white; }
figcaption { font-size: .9rem; opacity: .8; } pre { overflow-x: auto; background: #8881; padding: .8rem; }
"""
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
CHECK_HEADS = ("verdict", "check", "value", "bound", "rests on")


def write_report(run: Run, folder: Path) -> None:
    """Write report.html and report.md beside `plots/`, whose pictures must be there."""
    (folder / "report.html").write_text(html(run, folder / "plots"), encoding="utf-8")
    (folder / "report.md").write_text(markdown(run), encoding="utf-8")


def html(run: Run, pictures: Path) -> str:
    """The whole report as one page, pictures inside."""
    parts = [
        f"<h1>{escape(headline(run))}</h1>",
        *(f"<p>{escape(sentence)}</p>" for sentence in facts(run)),
        "<h2>Checks</h2>",
        _html_table(CHECK_HEADS, [_check_cells(check) for check in run.checks]),
        "<h2>What to look at</h2>",
        *(f"<p>{escape(sentence)}</p>" for sentence in looked_at(run)),
        _html_table(FINDING_HEADS, found(run)) if run.findings else "",
        _html_table(SLOW_HEADS, slow_and_fast(run)),
        "<h2>Key figures</h2>",
        _html_table(("figure", "value"), figures(run)),
        "<h2>Pictures</h2>",
        *(_html_picture(name, pictures / f"{name}.png") for name in shown(run)),
        *(f"<p>{escape(sentence)}</p>" for sentence in not_shown(run)),
        "<h2>Run it again</h2>",
        f"<pre>{escape(command(run))}</pre>",
        f"<details><summary>Configuration</summary><pre>{escape(_pretty(run.config))}</pre></details>",
        f"<details><summary>Manifest</summary><pre>{escape(_pretty(run.manifest))}</pre></details>",
    ]
    head = f'<meta charset="utf-8"><title>{escape(headline(run))}</title><style>{STYLE}</style>'
    body = "\n".join(parts)
    return f'<!DOCTYPE html>\n<html lang="en">\n<head>{head}</head>\n<body>\n{body}\n</body>\n</html>\n'


def markdown(run: Run) -> str:
    """The same facts, with links to the pictures."""
    blocks = [
        f"# {headline(run)}",
        *facts(run),
        "## Checks",
        _markdown_table(CHECK_HEADS, [_check_cells(check) for check in run.checks]),
        "## What to look at",
        *looked_at(run),
        *([_markdown_table(FINDING_HEADS, found(run))] if run.findings else []),
        _markdown_table(SLOW_HEADS, slow_and_fast(run)),
        "## Key figures",
        _markdown_table(("figure", "value"), figures(run)),
        "## Pictures",
        *(f"![{CAPTIONS[name]}](plots/{name}.png)\n\n{CAPTIONS[name]}" for name in shown(run)),
        *not_shown(run),
        "## Run it again",
        f"```bash\n{command(run)}\n```",
    ]
    return "\n\n".join(blocks) + "\n"


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
    if manifest["interrupted"]:
        sentences.insert(
            0,
            f"Interrupted: {manifest['in_flight']} requests were in flight; only what had finished is in here.",
        )
    return sentences


def figures(run: Run) -> list[tuple[str, ...]]:
    """The key figures, latencies with what they rest on, a dash for those that do not exist."""
    shares = [(f"share_{replica}", f"share of replica {replica}") for replica in run.replicas]
    summary = run.summary
    return [(label, told(run, key, summary[key])) for key, label in (*KEY_FIGURES, *shares)]


def looked_at(run: Run) -> list[str]:
    """What the detectors and the estimate of regret say, in sentences."""
    detectors = "herding, priority inversion, head-of-line blocking and thrashing"
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


def shown(run: Run) -> list[str]:
    """The pictures that show something."""
    missing = left_out(run)
    return [name for name in plots if name not in missing]


def not_shown(run: Run) -> list[str]:
    """Why other pictures are missing, in a sentence."""
    missing = left_out(run)
    told = "; ".join(f"{name.replace('_', ' ')} ({reason})" for name, reason in missing.items())
    return [f"Left out, as there would be nothing to see: {told}."] if missing else []


def command(run: Run) -> str:
    """The line that plays this run again."""
    overrides = list(run.manifest["overrides"])
    if not any(line.startswith("scenario=") for line in overrides):
        overrides.insert(0, f"scenario={run.name}")
    return shlex.join(["python", "-m", "sim", *overrides])


def _check_cells(check: Check) -> tuple[str, ...]:
    return check.verdict, check.name, number(check.value), f"{check.op} {number(check.limit)}", noted(check)


def _html_table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = ["<table>", "<tr>" + "".join(f"<th>{escape(head)}</th>" for head in heads) + "</tr>"]
    for row in rows:
        cells = [
            f"<td{_html_class(head, cell)}>{escape(cell)}</td>" for head, cell in zip(heads, row, strict=True)
        ]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return "\n".join([*lines, "</table>"])


def _html_class(head: str, cell: str) -> str:
    if head == "verdict":
        return f' class="verdict {escape(cell)}"'
    return ' class="figure"' if head in ("value", "bound") else ""


def _html_picture(name: str, path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    caption = escape(CAPTIONS[name])
    image = f'<img alt="{caption}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def _markdown_table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=2, allow_nan=False)
