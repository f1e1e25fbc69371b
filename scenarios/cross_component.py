"""Everything at once: tiers, quotas, sessions, an experiment, groups, a death and a load; and all of it is told."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from engine.engine import Engine
from engine.settings import above, at_least, require
from sim import recount, told
from sim.checks import Check, at_most, evidence, p99_at_most
from sim.faults import crash, recover
from sim.metrics import TIERS
from sim.runs import Run
from sim.stage import Stage

PATIENCE_S = 5.0
PHASE_OF_THE_SERVED = "decode"


@dataclass
class Settings:
    """Who dies and who leaves, when by the share of requests that have arrived, and the bounds."""

    name: str
    victim: str
    dies_at_share: float
    returns_at_share: float
    leaver: str
    leaves_at_share: float
    max_p99_ttft_s: float
    min_requests: int
    min_parts: int

    def __post_init__(self) -> None:
        for name in ("dies_at_share", "returns_at_share", "leaves_at_share"):
            share = getattr(self, name)
            require(f"scenario.{name}", share, 0 <= share < 1, "at least 0 and below 1")
        later = self.returns_at_share > self.dies_at_share
        require("scenario.returns_at_share", self.returns_at_share, later, "above scenario.dies_at_share")
        above("scenario.max_p99_ttft_s", self.max_p99_ttft_s, 0)
        at_least("scenario.min_requests", self.min_requests, 1)
        at_least("scenario.min_parts", self.min_parts, 0)


def script(stage: Stage, s: Settings) -> None:
    when = stage.trace.arrival_s
    stage.at(when(s.dies_at_share), crash(s.victim, holding=1, patience_s=PATIENCE_S), "scenario.victim")
    stage.at(when(s.returns_at_share) + PATIENCE_S, recover(s.victim), "scenario.victim")
    leaver = stage.engine.registry.find(s.leaver).key
    stage.act(when(s.leaves_at_share), partial(leave, leaver))


async def leave(key: str, engine: Engine) -> None:
    """An operator takes a model out of memory; who asks for it next has it loaded again."""
    await engine.lifecycle.unload(key)


def checks(run: Run, s: Settings) -> Iterator[Check]:
    whole, offered = run.whole, int(run.manifest["trace"]["requests"])
    yield evidence("requests", offered, s.min_requests)
    yield at_most("requests that did not complete", offered - len(whole.completed), 0, f"n={offered}")
    seen = {name: count for name, count in at_work(run).items() if count}
    missing = ", ".join(sorted(set(at_work(run)) - set(seen)))
    note = f"missing: {missing}" if missing else ", ".join(f"{name} {count}" for name, count in seen.items())
    yield evidence("parts of the engine seen at work", len(seen), s.min_parts, note)
    yield from of_quotas(run)
    yield from of_telemetry(run, offered)
    published = "112 ms for five models"
    yield p99_at_most("p99 TTFT of all requests, s", whole.ttft_s, s.max_p99_ttft_s, published=published)


def at_work(run: Run) -> dict[str, int]:
    """How often each part of the engine had something to do with a request."""
    rows, facts, reasons = run.requests, run.facts, run.decisions["reason"]
    known, groups = rows["model_requested"], [*run.config["routing"]["groups"], "auto"]
    found = {
        "groups": int(known.isin(groups).sum()),
        "versions": int(known.str.contains("@").sum()),
        "arms": int(rows["arm"].nunique() > 1) and int(rows["arm"].notna().sum()),
        "sessions": int(reasons.str.contains("session").sum()),
        "second tries": run.whole.second_tries,
        "fallbacks": int((facts["kind"] == "request_fell_back").sum()),
        "loads": int(((facts["kind"] == "model_state_changed") & (facts["detail"] == "loading")).sum()),
        "waits for quota": int((rows["admitted_ns"] > rows["loaded_ns"]).sum()),
        "priorities": int(rows["priority"].nunique() > 1) and int((rows["priority"] > 0).sum()),
        "tenants": int(rows["tenant"].nunique()),
    }
    tiers = [tier for tier in TIERS if run.config["tiers"][tier] is not None][:2]
    return found | {f"hits in {tier}": int((rows[f"cached_tokens_{tier}"] > 0).sum()) for tier in tiers}


def of_quotas(run: Run) -> Iterator[Check]:
    """No limit was passed: by what the ledger said at each sample, and by a count of ours of the requests."""
    series, quotas = run.timeseries, run.config["quotas"]
    used = series.loc[series["subject"].str.startswith("quota of "), "value"]
    share = float(used.max()) if len(used) else None
    yield at_most("largest used share of a limit, by the ledger", share, 1.0, f"{len(used)} samples")
    most = quotas["max_concurrent_requests"] if quotas["enabled"] else None
    over = recount.exceeded(run.requests, quotas["limits"] or [], most)
    yield at_most("limits that were exceeded, by a recount", len(over), 0, "; ".join(over[:3]))


def of_telemetry(run: Run, offered: int) -> Iterator[Check]:
    """Each request has one end in the log and one trace with its phases, and metrics count all of them."""
    ids, ends = run.requests["request_id"].tolist(), told.ends(run.path)
    wrong = sum(ends[each] != 1 for each in ids) + len(set(ends) - set(ids)) + offered - len(ids)
    yield at_most("requests without exactly one end in the log", wrong, 0, f"n={sum(ends.values())}")
    outcome = dict(zip(ids, run.requests["outcome"].tolist(), strict=True))
    traces = told.traces(run.path)
    good = [each.request_id for each in traces if is_good(each, outcome)]
    wrong = (
        sum(good.count(each) != 1 for each in ids)
        if len(good) != len(set(good))
        else len(set(ids) - set(good))
    )
    wrong += len(traces) - len(good)
    spans = len(traces) + sum(len(each.phases) for each in traces)
    yield at_most(
        "requests without exactly one whole trace", wrong, 0, f"{len(traces)} traces, {spans} spans"
    )
    amiss = miscounted(run)
    yield at_most("metrics that do not add up to the requests", len(amiss), 0, "; ".join(amiss[:3]))


def is_good(trace: told.TraceTold, outcome: dict[int, str]) -> bool:
    """Whether a trace is of a request that ended like that, with phases, up to the last one where it was served."""
    is_served = outcome.get(trace.request_id) == "completed"
    has_all = bool(trace.phases) and (not is_served or PHASE_OF_THE_SERVED in trace.phases)
    return trace.is_whole and has_all and outcome.get(trace.request_id) == trace.outcome


def miscounted(run: Run) -> list[str]:
    """The metrics that say another number than the requests table."""
    rows, counted = run.requests, told.counters(run.path)
    done = run.whole.completed
    pairs = {
        f"requests {outcome}": (
            told.total(counted, "modelyard:requests_total", outcome=str(outcome)),
            len(of),
        )
        for outcome, of in rows.groupby("outcome")
    }
    pairs |= {
        "prompt tokens": (told.total(counted, "vllm:prompt_tokens_total"), int(done["prompt_tokens"].sum())),
        "output tokens": (
            told.total(counted, "vllm:generation_tokens_total"),
            int(rows["output_tokens"].sum()),
        ),
        "first tokens": (told.total(counted, "vllm:time_to_first_token_seconds_count"), len(done)),
        "requests in all": (told.total(counted, "modelyard:requests_total"), len(rows)),
    }
    for replica, of in done.groupby("replica"):
        name = f"requests of {replica}"
        pairs[name] = (told.total(counted, "modelyard:replica_requests_total", replica=str(replica)), len(of))
    return [f"{name}: {said:g} for {seen}" for name, (said, seen) in pairs.items() if said != seen]
