"""A generator like a trace: settings of the kind `generated` under which its traffic would be likely.

Sessions start by a renewal process, run faster and slower by a curve; their turns, thinking, lengths, models, tenants
and priorities are drawn independently. What such settings cannot hold, a description of both shows.
"""

from dataclasses import asdict, dataclass
from math import exp, inf, isfinite, log, pi, sin, sqrt
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from engine.clock import NS_PER_S
from engine.registry.discovery import printable
from engine.settings import require
from sim.traffic.arrivals import SHORTEST_S
from sim.traffic.describe import correlation, ranks
from sim.traffic.generator import (
    ClassSettings,
    GeneratedWorkload,
    PrefixSettings,
    TenantSettings,
    TopTemplate,
)
from sim.traffic.kinship import related
from sim.traffic.lengths import LengthSettings
from sim.traffic.likelihood import between, clipped_log_normal, distance, followed, rounded, zipf_exponent
from sim.traffic.merged import MergedWorkload, of_model
from sim.traffic.mixes import LARGEST_CV
from sim.traffic.process import Process, as_settings, likeliest
from sim.traffic.sessions import LONGEST_THINK_S, SessionSettings
from sim.traffic.trace import Lengths, Trace

Floats = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]

MAX_NAMED = 10_000  # windows of a curve whose length was named
MAX_TENANTS = 200  # that have a share of their own; those behind them are one
POOR = 0.05  # a distance of a log-normal law from which on a histogram is better
SIGNIFICANT = 1.63  # over the square root of n: a distance that chance has in one of a hundred
SIGMAS = 4.0  # beyond these, shares are not those of Zipf's law
BINS = 100
FEW = 50  # turns, or requests of a model, that are too few for a law of their own
VERY_SIGNIFICANT = 2.6  # as above, of one in a million
OTHER = 0.1  # a distance between two models from which on each has a part of its own
MAX_PARTS = 50
FAINT = 0.03  # a correlation that is not worth a setting
MAX_TOP = 20  # templates by themselves
LEAST_SHARE = 0.005  # of the sessions with a template, of one that is by itself
OTHERS = "others"
EXPLAINED = {
    "arrivals": ("arrivals", "curve"),
    "prefixes": ("top", "templates"),
}
"""Under which names the findings on a setting stand, where that is not its own."""


@dataclass(slots=True, kw_only=True)
class Fit:
    """The settings that were found, and what was found of each concern, in words."""

    workload: GeneratedWorkload
    findings: dict[str, str]
    differs: bool  # whether lengths are others from model to model


@dataclass(slots=True, kw_only=True)
class PartsFit:
    """The settings of each model's part, and what was found of it."""

    workload: MergedWorkload
    parts: dict[str, Fit]

    @property
    def findings(self) -> dict[str, str]:
        return {
            f"{name}: {concern}": finding
            for name, part in self.parts.items()
            for concern, finding in part.findings.items()
        }


@dataclass(slots=True, kw_only=True)
class Starts:
    """The first requests of sessions, or all requests where there are none, and what the others add to them.

    `rows` are theirs in the trace. `added` is what each request of the trace adds to what was said before.
    """

    rows: Ids
    arrival_s: Floats
    tenant: Lengths
    added: Ids


def fit_by_model(trace: Trace, window_s: float | None = None) -> Fit | PartsFit:
    """Settings like a trace: of one generator for all, or of one for each model where their lengths differ."""
    whole = fit(trace, window_s)
    if not whole.differs or trace.model_of is None:
        return whole
    counts = np.bincount(trace.model_of, minlength=len(trace.models))
    parts = {
        name: fit(of_model(trace, index), window_s, within=trace)
        for index, name in enumerate(trace.models)
        if counts[index]
    }
    workload = MergedWorkload(parts={name: part.workload for name, part in parts.items()}, vocab=trace.vocab)
    return PartsFit(workload=workload, parts=parts)


def fit(trace: Trace, window_s: float | None = None, within: Trace | None = None) -> Fit:
    """Settings like a trace. `window_s` is the length of the curve's windows; None: the one that fits best.

    `within`: the trace that it is a part of, whose time is its own. Raises BadSettings for a trace whose requests
    come all at once.
    """
    of_time = within or trace
    span_s = of_time.span_ns / NS_PER_S
    require("the span of the trace in s", span_s, span_s > 0, "above 0: arrivals at two times at least")
    if window_s is not None:
        require(
            "window_s", window_s, isfinite(window_s) and window_s >= SHORTEST_S, f"from {SHORTEST_S:g} on"
        )
        require("window_s", window_s, span_s <= MAX_NAMED * window_s, f"at least {span_s / MAX_NAMED:g} here")
    duration_s = span_s * len(of_time) / (len(of_time) - 1)  # with a gap before the first arrival, too
    findings: dict[str, str] = {}
    trace = related(trace)
    sessions = _sessions(trace, findings)
    starts = _starts(trace, int(of_time.arrival_ns[0]))
    process = likeliest(starts.arrival_s, starts.tenant, span_s, window_s)
    prefixes, templates = _prefixes(trace, starts, findings)
    own = starts.added.copy()
    own[starts.rows] -= templates
    own = np.maximum(own, 1)
    first, later = _turns(own, starts.rows)
    models, zipf, weights = _models(trace, starts, findings)
    workload = GeneratedWorkload(
        rate=rounded(len(starts.rows) * sessions.mean_turns / duration_s),
        requests=None,
        duration_s=rounded(duration_s),
        arrivals=as_settings(process, span_s, findings),
        tenants=_tenants(trace, starts, process, findings),
        prompt=_lengths(first, "prompt", findings),
        follow_up=_lengths(later, "follow_up", findings) if len(later) else None,
        output=_lengths(trace.output_tokens, "output", findings),
        correlation=_correlation(own, trace.output_tokens, findings),
        prefixes=prefixes,
        sessions=sessions,
        classes=_classes(trace, starts),
        models=models,
        model_zipf=zipf,
        model_weights=weights,
        vocab=trace.vocab,
    )
    return Fit(workload=workload, findings=findings, differs=_differs(trace, own))


def _differs(trace: Trace, own: Ids) -> bool:
    """Whether what is added, or answered, is of another law for one model than for the others."""
    if trace.model_of is None or len(trace.models) > MAX_PARTS:
        return False
    for model in np.unique(trace.model_of).tolist():
        of_it = trace.model_of == model
        count = int(of_it.sum())
        if min(count, len(trace) - count) < FEW:
            continue
        chance = VERY_SIGNIFICANT * sqrt(1 / count + 1 / (len(trace) - count))
        for values in (own, trace.output_tokens):
            if between(values[of_it], values[~of_it]) > max(OTHER, chance):
                return True
    return False


def _starts(trace: Trace, begin_ns: int) -> Starts:
    """Where sessions start. A follower adds what is neither of the prompt before it nor of the answer to that."""
    added = trace.prompt_tokens.astype(np.int64)
    tenant = np.zeros(len(trace), np.int32) if trace.tenant_of is None else trace.tenant_of
    rows = np.arange(len(trace))
    if trace.session is not None:
        order, same = _by_session(trace)
        before, later = order[:-1][same], order[1:][same]
        added[later] -= trace.prompt_tokens[before].astype(np.int64) + trace.output_tokens[before]
        rows = np.sort(order[np.concatenate(([True], ~same))])
    arrival_s = (trace.arrival_ns[rows] - begin_ns) / NS_PER_S
    return Starts(rows=rows, arrival_s=arrival_s, tenant=tenant[rows], added=added)


def _by_session(trace: Trace) -> tuple[Ids, npt.NDArray[np.bool_]]:
    """The rows session by session, and for each but the first, whether it follows the one before."""
    assert trace.session is not None
    order = np.argsort(trace.session, kind="stable")
    return order, np.diff(trace.session[order]) == 0


def _sessions(trace: Trace, findings: dict[str, str]) -> SessionSettings:
    """Turns and thinking. Whether a turn was the last, or the trace ended before the next one, is not known."""
    if trace.session is None or len(trace) == 1:
        return SessionSettings()
    order, same = _by_session(trace)
    if not same.any():
        return SessionSettings()
    arrival_ns = trace.arrival_ns[order]
    gaps_s = np.diff(arrival_ns)[same] / NS_PER_S
    left_s = (trace.arrival_ns[-1] - arrival_ns[np.append(~same, True)]) / NS_PER_S
    share, mu, sigma = followed(gaps_s, left_s[left_s > 0])
    mean_turns = 1 / (1 - share)
    findings["sessions"] = f"{mean_turns:.3g} turns; thinking is log-normal, from {len(gaps_s):,} gaps"
    return SessionSettings(
        mean_turns=rounded(mean_turns),
        think_median_s=rounded(exp(min(mu, log(LONGEST_THINK_S)))),
        think_sigma=rounded(min(sigma, 10.0)),
        wait=trace.after is not None,
    )


def _lengths(values: npt.NDArray[np.integer], name: str, findings: dict[str, str]) -> LengthSettings:
    """A clipped log-normal law, or a histogram where that is too far from what was seen."""
    different, counts = np.unique(values.astype(np.int64), return_counts=True)
    least, most = int(different[0]), int(different[-1])
    if least == most:
        findings[name] = "always the same"
        return LengthSettings(law="fixed", tokens=least, min=least, max=least)
    law = clipped_log_normal(different, counts)
    far = distance(different, counts, law.below)
    if far <= max(POOR, SIGNIFICANT / sqrt(len(values))) and law.sigma <= 10:  # noqa: PLR2004
        findings[name] = f"log-normal; KS distance {far:.3f}"
        median = min(exp(law.mu), float(most))
        return LengthSettings(median=rounded(median), sigma=rounded(law.sigma), min=least, max=most)
    edges, weights = histogram(different, counts)
    near = distance(different, counts, _below_bins(edges, weights))
    findings[name] = (
        f"histogram of {len(weights)} bins, KS distance {near:.3f}; {far:.3f} of the log-normal law"
    )
    return LengthSettings(
        law="histogram", edges=edges.tolist(), weights=weights.tolist(), min=least, max=most
    )


def _turns(own: Ids, starts: Ids) -> tuple[Ids, Ids]:
    """What first turns add and what later ones do; all of it and nothing, where both are alike."""
    is_first = np.zeros(len(own), bool)
    is_first[starts] = True
    first, later = own[is_first], own[~is_first]
    if min(len(first), len(later)) < FEW:
        return own, own[:0]
    chance = SIGNIFICANT * sqrt(1 / len(first) + 1 / len(later))
    return (first, later) if between(first, later) > max(POOR, chance) else (own, own[:0])


def _correlation(own: Ids, output: Lengths, findings: dict[str, str]) -> float:
    """That of the normal variables behind what turns add and their answers; 0 where chance would explain it.

    From Spearman's coefficient, which the laws of the lengths do not move (Kruskal, "Ordinal measures of
    association", 1958). Where ranks and lengths themselves disagree, there is no such pair of variables.
    """
    plain, spearman = correlation(own, output), correlation(ranks(own), ranks(output))
    if plain is None or spearman is None:
        return 0.0
    faint = max(FAINT, SIGMAS / sqrt(len(own)))
    if min(abs(plain), abs(spearman)) < faint or plain * spearman < 0:
        return 0.0
    found = rounded(2 * sin(pi / 6 * min(max(spearman, -1.0), 1.0)), 4)
    findings["correlation"] = f"of ranks {spearman:.3f}"
    return found


def histogram(values: Ids, counts: Ids) -> tuple[Ids, Floats]:
    """Edges and weights of bins that are about equally full; a value that fills one alone has one for itself."""
    upto = np.cumsum(counts)
    at = np.linspace(0, upto[-1], BINS + 1)[:-1]
    tail = upto[-1] * np.array([0.995, 0.999])
    chosen = values[np.searchsorted(upto, np.concatenate((at, tail)), side="right")]
    crowded = values[counts * BINS >= upto[-1]]
    edges = np.unique(np.concatenate((chosen, crowded, crowded + 1, [values[0], values[-1] + 1])))
    weights, _ = np.histogram(values, edges, weights=counts)
    weights[-1] = counts.sum() - weights[:-1].sum()
    return edges, weights.astype(np.float64)


def _below_bins(edges: Ids, weights: Floats) -> "_Bins":
    return _Bins(edges=edges, upto=np.concatenate(([0.0], np.cumsum(weights) / weights.sum())))


@dataclass(slots=True, kw_only=True)
class _Bins:
    """The share at or below a whole number, of a histogram whose numbers within a bin are alike."""

    edges: Ids
    upto: Floats

    def __call__(self, value: float) -> float:
        return float(np.interp(value + 1, self.edges, self.upto))


def _prefixes(trace: Trace, starts: Starts, findings: dict[str, str]) -> tuple[PrefixSettings, Ids]:
    """The templates that sessions share, and how many tokens of each start's prompt are its template's."""
    prefix = trace.prefix[starts.rows]
    shared = prefix >= 0
    if not shared.any():
        return PrefixSettings(), np.zeros(len(prefix), np.int64)
    length = np.array([len(template) for template in trace.prefixes], np.int64)
    model = np.zeros(len(trace), np.int32) if trace.model_of is None else trace.model_of
    pairs, counts = np.unique(
        np.stack((model[starts.rows][shared], prefix[shared])), axis=1, return_counts=True
    )
    templates = np.where(shared, length[prefix], 0)
    top, others = _top(length, pairs, counts, findings)
    by_rank = _by_rank(pairs[0][others], counts[others])
    settings = PrefixSettings(
        count=len(by_rank),
        zipf=rounded(zipf_exponent(by_rank)) if len(by_rank) else 1.0,
        share=rounded(float(shared.mean())),
        top=top,
    )
    if others.any():
        settings.tokens = _lengths(length[pairs[1][others]], "templates", findings)
    return settings, np.minimum(templates, trace.prompt_tokens[starts.rows] - 1)


def _top(
    length: Ids, pairs: Lengths, counts: Ids, findings: dict[str, str]
) -> tuple[list[TopTemplate], npt.NDArray[np.bool_]]:
    """The most popular templates where Zipf's law does not tell how popular they are, and which the others are.

    Of one model: those of several have lengths of their own.
    """
    others = np.ones(len(counts), bool)
    if len(np.unique(pairs[0])) > 1 or _is_zipf(_by_rank(pairs[0], counts)):
        return [], others
    order = np.argsort(-counts, kind="stable")[:MAX_TOP]
    listed = order[counts[order] >= LEAST_SHARE * counts.sum()]
    others[listed] = False
    findings["top"] = (
        f"{len(listed)} of {len(counts)} by themselves: they are not as popular as Zipf's law would have it"
    )
    shares = (counts[listed] / counts.sum()).tolist()
    return [
        TopTemplate(share=rounded(share), tokens=int(length[pairs[1][index]]))
        for share, index in zip(shares, listed.tolist(), strict=True)
    ], others


def _is_zipf(counts: Ids) -> bool:
    """Whether a chi-square test allows Zipf's law for counts by rank."""
    law = np.arange(1, len(counts) + 1) ** -zipf_exponent(counts)
    expected = law / law.sum() * counts.sum()
    chi2 = float(((counts - expected) ** 2 / expected).sum())
    free = len(counts) - 1
    return chi2 <= free + SIGMAS * sqrt(2 * free)


def _by_rank(model: Lengths, counts: Ids) -> Ids:
    """How often the first, the second, ... template of any model is used, each model's own in falling order."""
    most = np.zeros(int(np.bincount(model).max(initial=0)), np.int64)
    for one in np.unique(model):
        ranked = -np.sort(-counts[model == one])
        most[: len(ranked)] += ranked
    return most


def _models(trace: Trace, starts: Starts, findings: dict[str, str]) -> tuple[int, float | None, list[float]]:
    """How many models there are and how popular: by Zipf's law in their order, or by weights."""
    if trace.model_of is None:
        return 1, None, []
    names = len(trace.models) or int(trace.model_of.max()) + 1
    counts = np.bincount(trace.model_of[starts.rows], minlength=names)
    order = ", ".join(trace.models)
    if _is_zipf(counts):
        findings["models"] = f"by Zipf's law, in the order {order}"
        return names, rounded(zipf_exponent(counts)), []
    findings["models"] = f"by weight, in the order {order}"
    return names, 0.0, [rounded(share, 4) for share in (counts / counts.sum()).tolist()]


def _tenants(trace: Trace, starts: Starts, process: Process, findings: dict[str, str]) -> TenantSettings:
    """The shares of the tenants, and how their gaps vary where they do so differently."""
    if trace.tenant_of is None:
        return TenantSettings()
    counts = np.bincount(starts.tenant, minlength=len(trace.tenants))
    order = np.argsort(-counts, kind="stable")
    listed = order[counts[order] > 0][:MAX_TENANTS]
    shares = {trace.tenants[index]: rounded(counts[index] / counts.sum()) for index in listed.tolist()}
    if rest := int(counts.sum() - counts[listed].sum()):
        shares[OTHERS] = rounded(shares.get(OTHERS, 0.0) + rest / int(counts.sum()))
    findings["tenants"] = f"{len(listed)} of {int((counts > 0).sum())} with shares of their own"
    if not process.cvs:
        return TenantSettings(shares=shares)
    logs = np.log(list(process.cvs.values()))
    median, sigma = exp(float(logs.mean())), float(logs.std(ddof=1))
    findings["tenants"] += f"; CV of gaps is log-normal over {len(logs)}"
    return TenantSettings(
        shares=shares,
        cv_median=rounded(min(median, LARGEST_CV)),
        cv_sigma=rounded(sigma),
        cvs={
            trace.tenants[index]: rounded(min(process.cvs[index], LARGEST_CV))
            for index in listed.tolist()
            if index in process.cvs
        },
    )


def _classes(trace: Trace, starts: Starts) -> list[ClassSettings]:
    """A class for each priority that there is, unless all have none."""
    if trace.priority_of is None or not trace.priority_of.any():
        return []
    priorities, counts = np.unique(trace.priority_of[starts.rows], return_counts=True)
    found = zip(priorities.tolist(), (counts / counts.sum()).tolist(), strict=True)
    return [
        ClassSettings(name=f"priority_{priority}", share=rounded(share), priority=priority)
        for priority, share in found
    ]


def written(found: Fit | PartsFit, source: str) -> str:
    """The settings as a file for `conf/workload`, with a comment on how each concern was found."""
    lines = [
        "# as FOLDER/workload/NAME.yaml: python -m sim --config-dir FOLDER scenario=failover workload=NAME",
        f"# fitted to {printable(' '.join(source.split()))}",
    ]
    if isinstance(found, Fit):
        return "\n".join(lines + _lines(found)) + "\n"
    lines += ["# a part for each model, since lengths differ from model to model", "kind: merged"]
    lines += ["requests: null # the first so many; null is all"]
    lines += [f"model_zipf: {found.workload.model_zipf}", f"vocab: {found.workload.vocab}", "parts:"]
    for name, part in found.parts.items():
        lines += [f"  {_flow(name)}:", *(f"    {line}" for line in _lines(part))]
    return "\n".join(lines) + "\n"


def _lines(found: Fit) -> list[str]:
    lines = []
    for key, value in _told(asdict(found.workload), asdict(GeneratedWorkload())).items():
        comments = [found.findings[name] for name in EXPLAINED.get(key, (key,)) if name in found.findings]
        lines += [f"# {printable(' '.join(comment.split()))}" for comment in comments]
        if isinstance(value, dict) and value:
            lines += [f"{key}:", *(f"  {name}: {_flow(part)}" for name, part in value.items())]
        else:
            lines.append(f"{key}: {_flow(value)}")
    return lines


def _told(values: dict[str, Any], usual: dict[str, Any]) -> dict[str, Any]:
    """Without what is off, now as ever: null, empty, or a group of such."""
    told = {}
    for key, value in values.items():
        part = _told(value, usual.get(key) or {}) if isinstance(value, dict) else value
        if part not in (None, [], {}) or (not isinstance(value, dict) and value != usual.get(key)):
            told[key] = part
    return told


def _flow(value: object) -> str:
    """A value on one line of YAML."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=inf, sort_keys=False, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")
