"""The cache is full of documents of five models, and each new one makes another leave: of all models the right one.

Requests come one at a time, so the order in which documents were read is beyond doubt, and who should leave next by a
policy's plainest words (`sim.plain_evictions`) can be told from the requests alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from engine.cache.cache import TICK_NS
from engine.settings import at_least as least
from engine.settings import require
from sim.checks import Check, all_completed, at_most, evidence
from sim.config import read
from sim.plain_evictions import POLICIES, Name, Verdicts, judged
from sim.runs import Run
from sim.stage import Stage

STRANGER = -1  # a document that nobody asked for


@dataclass
class Settings:
    """How much has to happen before the order of evictions says something."""

    name: str
    min_in_use: float
    min_evictions: int
    min_models: int

    def __post_init__(self) -> None:
        require("scenario.min_in_use", self.min_in_use, 0 < self.min_in_use <= 1, "above 0 and at most 1")
        least("scenario.min_evictions", self.min_evictions, 1)
        least("scenario.min_models", self.min_models, 1)


def script(stage: Stage, _: Settings) -> None:
    """Nothing happens but requests. Raises BadSettings where their order would not say who has to leave."""
    cache = stage.engine.settings.cache
    tiers = ", ".join(cache.tiers)
    require("tiers.enabled", cache.enabled, cache.enabled, "true: without a cache nobody leaves it")
    require("tiers", tiers, len(cache.tiers) == 1, "one tier: from several, blocks leave to others first")
    require("allocation.name", cache.allocation, cache.allocation == "shared", "shared: one order for all")
    require("workload", stage.trace.source, stage.trace.prefix is not None, "one whose prompts have prefixes")


def checks(run: Run, s: Settings) -> Iterator[Check]:
    policy = run.config["eviction"]["name"]
    documents = {run.manifest["seed"]: documents_of(run)}
    found = verdicts(run, documents[run.manifest["seed"]])
    tier = next(iter(run.manifest["cache"]["tiers"].values()))
    used, capacity = tier["used_bytes"], tier["capacity_bytes"]

    yield all_completed(run.whole)
    yield evidence("part of the requests that were served alone", alone(run), 1.0)
    note = f"{used / 1e9:.4g} of {capacity / 1e9:.4g} GB"
    yield evidence("part of the cache in use", used / capacity, s.min_in_use, note, published="500 GB")
    yield evidence("evictions", found.evictions, s.min_evictions)
    given = " ".join(f"{model.partition('@')[0]} {count}" for model, count in sorted(found.by_model.items()))
    yield evidence("models that gave", len(found.by_model), s.min_models, given)
    yield at_most(
        f"evictions of another document than the next by {policy}", len(found.wrong), 0, first_of(found)
    )
    strangers = sum(right is None or right[0] != gone[0] for right, gone in found.wrong)
    yield at_most("evictions from another model than its", strangers, 0)
    if policy == "lru":
        yield at_most("evictions while an older one stayed", found.newer, 0, f"n={found.evictions}")
    yield at_most("evictions beyond need", found.early, 0)
    for name, runs in run.beside.items():
        for other in runs if name != "itself" else runs[1:]:
            seed = other.manifest["seed"]
            documents[seed] = documents.get(seed) or documents_of(other)
            yield ordered(other, documents[seed])


def ordered(other: Run, documents: list[int]) -> Check:
    """Whether a run beside this one evicted in the order of its own policy."""
    found = verdicts(other, documents)
    name = f"the same by {other.config['eviction']['name']}"
    if not found.evictions:
        return at_most(name, None, 0, "nothing was evicted")
    return at_most(name, len(found.wrong), 0, f"n={found.evictions} {first_of(found)}".strip())


def first_of(found: Verdicts) -> str:
    """The first mistake, in words."""
    if not found.wrong:
        return ""
    right, gone = found.wrong[0]
    return f"first: {gone[0]} {gone[1]}" + (
        f" for {right[0]} {right[1]}" if right else ", which was not there"
    )


def documents_of(run: Run) -> list[int]:
    """Which document each request asks about, by its number."""
    trace = read(run.manifest["overrides"]).draw()
    assert trace.prefix is not None
    return [int(number) for number in trace.prefix]


def verdicts(run: Run, documents: list[int]) -> Verdicts:
    """The evictions of a run, held against its policy in plain words."""
    models = run.manifest["cache"]["models"]
    rows = run.requests[run.requests["outcome"] == "completed"].sort_values("finished_ns")
    asked = []
    for model, number in zip(rows["model"].tolist(), rows["request_id"].tolist(), strict=True):
        size_bytes = models[model]["block_bytes"][0]
        name = (model, documents[number])
        asked.append((name, size_bytes, models[model]["recompute_ns"] / size_bytes))
    capacity = next(iter(run.manifest["cache"]["tiers"].values()))["capacity_bytes"]
    finished_ns = rows["finished_ns"].astype("int64").tolist()
    policy = POLICIES[run.config["eviction"]["name"]]()
    return judged(policy, capacity, asked, evicted(run, [name for name, _, _ in asked], finished_ns))


def evicted(run: Run, names: list[Name], finished_ns: list[int]) -> list[list[Name]]:
    """Who left for each of these requests, in order of their ends.

    The engine tells when the block that left had last been read; then only one request ended.
    """
    facts = run.facts[run.facts["kind"] == "blocks_evicted"]
    rows = zip(facts["at_ns"], facts["subject"], facts["value"], strict=True)
    leaving, read_at = next(rows, None), dict[tuple[str, int], Name]()
    found = []
    for name, end_ns in zip(names, finished_ns, strict=True):
        gone: list[Name] = []
        while leaving is not None and leaving[0] <= end_ns:
            _, model, read_ns = leaving
            gone.append(read_at.get((model, read_ns), (model, STRANGER)))
            leaving = next(rows, None)
        found.append(gone)
        read_at[name[0], end_ns - end_ns % TICK_NS] = name
    return found


def alone(run: Run) -> float | None:
    """The part of the requests that came when the one before had ended, in another tick of the cache's clock."""
    rows = run.requests.sort_values("arrival_ns")
    if len(rows) < 2:  # noqa: PLR2004  neighbours
        return None
    came, ended = rows["arrival_ns"].astype("int64"), rows["finished_ns"].astype("int64")
    return float((came.iloc[1:].to_numpy() > ended.iloc[:-1].to_numpy() + TICK_NS).mean())
