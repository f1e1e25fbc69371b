"""A real Prometheus scrapes a real server that serves, and is asked everything that the dashboard asks."""

import json
import os
import shutil
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest

from engine.server.settings import AuditSettings, JobSettings, LogSettings, ServerSettings, TraceSettings
from engine.settings import (
    AllowanceSettings,
    ArmSettings,
    CacheSettings,
    ExperimentSettings,
    HealthSettings,
    LoadingSettings,
    ModelSettings,
    QuotaSettings,
    RoutingSettings,
    TierSettings,
)
from engine.telemetry.boards import board
from tests.engine.server.conftest import TINY, modelled

pytestmark = pytest.mark.slow

SCRAPE_MS = 500
WINDOW = "6s"
CLIENTS = 4
ROUNDS = 2
MS = 1_000_000
PATIENCE_S = 90.0
PANELS = [panel for panel in json.loads(board("dashboard.json"))["panels"] if panel["type"] != "row"]
SILENT = {  # what does not happen to a healthy server within seconds, or is not part of this one
    "Fallbacks",
    "Ejections and panic",
    "Evicted too early",
    "Steps between modes",
    "Jobs",  # none waits or runs for long
    "Clients gone",
}


def settings_of():
    """Two models in memory and one that is not, an experiment, limits that some reach, two tiers that overflow."""
    small = 0.0002  # GiB: some 50 blocks
    loaded = {"a": "llama", "b": "llama", "c": "phi"}
    settings = modelled(replicas=loaded, models=("llama", "phi"), overhead_us=3000.0)
    settings.fleet.models.append(ModelSettings(name="late", architecture=TINY))
    settings.fleet.max_batch = 2
    settings.models = LoadingSettings(cold_median_s=0.3, weights_gib=8.0)
    settings.health = HealthSettings(probe_every_s=0.2, fall=1, rise=1)
    arms = [
        ArmSettings(name="one", target="llama", weight=0.5),
        ArmSettings(name="two", target="phi", weight=0.5),
    ]
    split = ExperimentSettings(name="split", on="auto", arms=arms)
    settings.routing = RoutingSettings(
        strategy="least_loaded", time_every=1, experiments=[split], slow_start_s=0.0
    )
    settings.quotas = QuotaSettings(
        limits=[
            AllowanceSettings(tenant="poor", hourly_requests=20),
            AllowanceSettings(model="phi", concurrent_requests=1),
        ]
    )
    settings.cache = CacheSettings(
        ram=TierSettings(gib=small), ssd=TierSettings(gib=2 * small), load="always", allocation="fair"
    )
    return settings


class Traffic:
    """Clients that ask one after the other until they are told to stop: sessions, tenants and models in turn."""

    def __init__(self, url):
        self.url = url
        self.is_over = False

    def client(self, number):
        with httpx.Client(base_url=self.url, timeout=60) as http:
            turn = 0
            while not self.is_over:
                turn += 1
                body = {
                    "model": ("llama", "phi", "auto")[turn % 3],
                    "messages": [
                        {"role": "user", "content": f"{number} " + "the same words again " * (turn % 40)}
                    ],
                    "max_tokens": 8,
                    "user": ("rich", "poor")[turn % 5 == 0],
                }
                # some without a session: all of those have moved to `a` once `b` has died, and stay there
                headers = {"x-session-id": f"s{turn % 7}"} if turn % 2 else {}
                answer = http.post("/v1/chat/completions", json=body, headers=headers)
                assert answer.status_code in (200, 429), answer.text

    @contextmanager
    def flowing(self):
        with ThreadPoolExecutor(CLIENTS) as pool:
            clients = [pool.submit(self.client, number) for number in range(CLIENTS)]
            try:
                yield
            finally:
                self.is_over = True
            for client in clients:
                client.result()


@pytest.fixture(scope="module")
def server(serving, tmp_path_factory):
    """A server that sees, writes down and does all that it can: whoever answers at `url` with metrics."""
    folder = tmp_path_factory.mktemp("server")
    own = ServerSettings(
        port=0,
        admin_port=0,
        audit=AuditSettings(file=str(folder / "audit.jsonl")),
        log=LogSettings(file=str(folder / "log.jsonl")),
        traces=TraceSettings(file=str(folder / "traces.jsonl")),
        jobs=JobSettings(folder=str(folder / "jobs"), health_every_s=1.0, rebalance_every_s=1.0),
    )
    with serving(settings_of(), own) as running:
        yield running


def trouble(server):
    """A model is loaded that was not there, and leaves; a replica dies with requests in its hands, and is back."""
    engine = server.server.engine
    asked = {"model": "late", "prompt": "a", "max_tokens": 1}
    assert httpx.post(f"{server.url}/v1/completions", json=asked, timeout=60).status_code == 200
    replica = engine.replicas["b"]

    async def die():
        while not replica.num_in_hand:
            await engine.clock.sleep(MS)
        replica.crash()

    server.call(die)
    time.sleep(0.6)
    server.call(replica.recover)
    server.call(engine.lifecycle.unload, engine.registry.find("late").key)
    time.sleep(0.6)


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@contextmanager
def prometheus(folder, target):
    """Debian's Prometheus, scraping that target; a client of its API."""
    found = shutil.which("prometheus")
    if found is None:
        pytest.skip("prometheus is not installed: Debian's package of that name has it")
    config = board("prometheus.yaml").replace("127.0.0.1:8000", target)
    config = config.replace("scrape_interval: 5s", f"scrape_interval: {SCRAPE_MS}ms").replace("15s", "1s")
    (folder / "prometheus.yaml").write_text(config)
    (folder / "alerts.yaml").write_text(board("alerts.yaml"))
    address = f"127.0.0.1:{free_port()}"
    log = (folder / "log").open("w")
    process = subprocess.Popen(
        [found, "--config.file=prometheus.yaml", f"--web.listen-address={address}", "--storage.tsdb.path=data"],
        cwd=folder, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "GOMAXPROCS": "1"},
    )  # fmt: skip
    try:
        with httpx.Client(base_url=f"http://{address}", timeout=60) as api:
            yield api
    finally:
        process.terminate()
        process.wait(60)
        log.close()


def wait_for(what, seen):
    """What `seen` gives as soon as it is something; an error of the network is nothing."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        try:
            if found := seen():
                return found
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"no {what} within {PATIENCE_S:g} s")


def asked(api, query):
    """The series that a query gives now."""
    answer = api.get("/api/v1/query", params={"query": query})
    told = answer.json()
    assert (answer.status_code, told["status"]) == (200, "success"), f"{query}: {answer.text}"
    return [each for each in told["data"]["result"] if each["value"][1] != "NaN"]


def typed(query):
    """A query as Grafana sends it when all of everything is chosen."""
    for name, value in (("$__rate_interval", WINDOW), ("$model", ".*"), ("$job", ".*"), ("$instance", ".*")):
        query = query.replace(name, value)
    assert "$" not in query, query
    return query


def test_each_query_of_the_dashboard_is_answered_by_a_prometheus_that_scraped_a_server(server, tmp_path):
    target = f"127.0.0.1:{server.server.port}"
    with prometheus(tmp_path, target) as api:
        wait_for("prometheus", lambda: api.get("/-/ready").status_code == 200)
        with Traffic(server.url).flowing():
            wait_for("scrape", lambda: [each for each in asked(api, "up == 1") if each["value"][1] == "1"])
            for _ in range(ROUNDS):
                trouble(server)
            found = {
                panel["title"]: [asked(api, typed(target["expr"])) for target in panel["targets"]]
                for panel in PANELS
            }
        rules = api.get("/api/v1/rules").json()["data"]["groups"]
        target_of = api.get("/api/v1/targets").json()["data"]["activeTargets"][0]
    empty = {title for title, series in found.items() if not any(series)}
    assert empty <= SILENT, f"no data: {sorted(empty - SILENT)}"
    partly = {title for title, series in found.items() if any(series) and not all(series)}
    assert partly <= SILENT | PARTLY, f"no data for a part: {sorted(partly - SILENT - PARTLY)}"
    assert target_of["lastError"] == ""
    wrong = [rule["name"] for group in rules for rule in group["rules"] if rule["health"] == "err"]
    assert not wrong, "rules that cannot be evaluated"
    assert not [
        rule["name"] for group in rules for rule in group["rules"] if rule["name"] in GRAVE and rule["alerts"]
    ]


PARTLY = {"Faults of stores", "Lost attempts and preemptions"}
"""Panels of which a part has nothing to show while all is well."""

GRAVE = {"ModelyardDown", "NoHealthyReplica", "ModelUnhealthy", "ServerErrors", "RouterPanic"}
"""Alerts that a healthy server does not cause."""
