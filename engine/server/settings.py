"""What can be set of the server: where it listens, whom it lets in, what it bears, and what it tells.

Sessions, experiments, cache, quotas and health are the engine's, and stand in engine/settings.py.
"""

import re
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from engine.settings import above, at_least, require

KIB = 1 << 10
MIB = 1 << 20

MODELS_FOLDER = Path("vendor/layerModels")
"""Where models are looked for unless somebody says otherwise."""

DEFAULT_TENANT = "default"
MAX_PRIORITY = 1_000
MAX_ATTEMPTS = 1_000_000  # of a job
SOONEST_S, YEAR_S = 0.001, 366 * 86_400  # between two times of a schedule
CENTURY_S = 100 * YEAR_S
"""In nanoseconds since 1970 it still is a whole number that a database keeps."""

LOG_LEVELS = ("debug", "info", "warning", "error", "off")
MAX_PORT = (1 << 16) - 1


def is_loopback(host: str) -> bool:
    """Whether only programs of this machine reach a server that listens there."""
    if host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:  # a name: nobody knows where it leads
        return False


@dataclass(slots=True, kw_only=True)
class LimitsSettings:
    """What one request, one connection and all of them together may take before they are refused.

    A prompt or an answer (`max_output_tokens`, of each of the `n` choices) that is null is bounded by the model's
    context alone. A body has to be there `body_timeout_s` after its first byte, however slowly it comes; a client
    that has read nothing for `write_timeout_s` is let go, and so is a connection that has been idle for
    `keep_alive_s`. At most `max_requests` are in the engine at a time, waiting ones included, `max_requests_per_key`
    of one key; whoever comes then is told to come again.
    """

    max_body_bytes: int = 8 * MIB
    max_file_bytes: int = 200 * MIB  # of an upload to /v1/files, as large as OpenAI's
    max_json_depth: int = 64
    max_header_bytes: int = 32 * KIB  # of all of them together, with the request line
    max_headers: int = 100
    max_prompt_tokens: int | None = None
    max_output_tokens: int | None = None
    max_choices: int = 16  # `n`
    max_messages: int = 4096
    max_tools: int = 128
    max_stop: int = 16  # stop strings; OpenAI has 4, vLLM no bound
    max_schema_bytes: int = 64 * KIB  # of a JSON schema: its grammar has to be built
    max_top_logprobs: int = 20
    max_id_chars: int = 256  # of a session's, a user's and a request's own names
    max_connections: int = 2048
    max_requests: int = 1024
    max_requests_per_key: int | None = None
    body_timeout_s: float = 10.0
    write_timeout_s: float = 30.0
    keep_alive_s: float = 75.0  # longer than proxies keep theirs: nginx 60 s

    def __post_init__(self) -> None:
        for name in ("max_body_bytes", "max_file_bytes", "max_header_bytes", "max_schema_bytes"):
            at_least(f"server.limits.{name}", getattr(self, name), KIB)
        counts = ("max_json_depth", "max_headers", "max_messages", "max_id_chars")
        for name in (*counts, "max_choices", "max_connections", "max_requests"):
            at_least(f"server.limits.{name}", getattr(self, name), 1)
        for name in ("max_tools", "max_stop", "max_top_logprobs"):
            at_least(f"server.limits.{name}", getattr(self, name), 0)
        for name in ("max_prompt_tokens", "max_output_tokens", "max_requests_per_key"):
            if (value := getattr(self, name)) is not None:
                at_least(f"server.limits.{name}", value, 1)
        for name in ("body_timeout_s", "write_timeout_s", "keep_alive_s"):
            above(f"server.limits.{name}", getattr(self, name), 0)


@dataclass(slots=True, kw_only=True)
class AuditSettings:
    """Where it is written down who changed what, and who was refused. `file` null: nowhere.

    A file that would grow beyond `max_bytes` becomes FILE.1, that one FILE.2, and so on; `keep` of them stay. With
    `sync` a line is on disk before the answer to what it tells of is sent.
    """

    file: str | None = None
    max_bytes: int = 64 * MIB
    keep: int = 10
    sync: bool = False

    def __post_init__(self) -> None:
        _check_file("server.audit", self.file, self.max_bytes, self.keep)


@dataclass(slots=True, kw_only=True)
class LogSettings:
    """Events as lines of JSON, on stderr where `file` is null.

    No prompt and no completion stands in any line unless `content` is true; keys never do. At most `max_per_s` lines
    of one kind a second (null: all), the others are counted and their number told. `requests`: one line for each
    request that has ended. A file is rotated as the audit log is.
    """

    file: str | None = None
    level: str = "info"
    content: bool = False
    requests: bool = True
    max_per_s: int | None = 1000
    max_bytes: int = 64 * MIB
    keep: int = 5

    def __post_init__(self) -> None:
        _check_file("server.log", self.file, self.max_bytes, self.keep)
        known = self.level in LOG_LEVELS
        require("server.log.level", self.level, known, f"one of {', '.join(LOG_LEVELS)}")
        if self.max_per_s is not None:
            at_least("server.log.max_per_s", self.max_per_s, 1)


@dataclass(slots=True, kw_only=True)
class TraceSettings:
    """One trace a request: to a collector that takes OTLP over HTTP (`endpoint`), to a file, to both, or nowhere.

    `sample` is the share of requests that are traced; one whose caller has decided is as the caller decided. Those
    that failed or ran out of time (`keep_errors`), and those that took longer than `keep_slower_s`, are traced in any
    case. What does not go out waits, `max_waiting` spans at most; the others are dropped and counted. `content` puts
    prompts and completions into spans. `headers` go with each export: a collector's key.
    """

    endpoint: str | None = None  # http://host:4318/v1/traces
    file: str | None = None
    sample: float = 1.0
    keep_errors: bool = True
    keep_slower_s: float | None = None
    content: bool = False
    headers: dict[str, str] = field(default_factory=dict)
    service_name: str = "modelyard"
    timeout_s: float = 10.0
    max_waiting: int = 4096

    def __post_init__(self) -> None:
        at = self.endpoint
        require(
            "server.traces.endpoint",
            at,
            at is None or _is_url(at),
            "http://HOST... or https://HOST..., or null",
        )
        for name, value in self.headers.items():
            is_header = TOKEN.fullmatch(name) is not None and value.isascii() and value.isprintable()
            require(f"server.traces.headers.{name}", value, is_header, "a header's name, and text in ASCII")
        require("server.traces.file", self.file, self.file != "", "the path of a file, or null")
        require("server.traces.sample", self.sample, 0 <= self.sample <= 1, "from 0 to 1")
        require("server.traces.service_name", self.service_name, self.service_name != "", "a name")
        if self.keep_slower_s is not None:
            at_least("server.traces.keep_slower_s", self.keep_slower_s, 0)
        above("server.traces.timeout_s", self.timeout_s, 0)
        at_least("server.traces.max_waiting", self.max_waiting, 1)

    @property
    def is_on(self) -> bool:
        return self.endpoint is not None or self.file is not None


@dataclass(slots=True, kw_only=True)
class JobSettings:
    """What is done beside requests, and where it is remembered.

    `folder` holds the jobs (SQLite) and the files of batches, and outlives the process; null: both are gone with it.
    Each `..._every_s` that is null leaves that job to operators. Offline batches run while at most
    `batch_idle_below` of what the fleet can run at a time is running: `batch_concurrency` of their requests at once,
    out of `batches_at_once` batches, with `batch_priority`. A job that fails is tried `max_attempts` times, again
    after `retry_after_s` and then twice as long each time. What is done, and files, are kept for `keep_s`.
    """

    enabled: bool = True
    folder: str | None = None
    workers: int = 2
    max_attempts: int = 3
    retry_after_s: float = 5.0
    keep_s: float = 30 * 86_400.0
    rescan_every_s: float | None = None
    health_every_s: float | None = None
    scrub_every_s: float | None = None
    scrub_bytes_per_s: int = 32 * MIB
    rebalance_every_s: float | None = None
    quota_reset_every_s: float | None = None
    warm_up: list[str] = field(default_factory=list)  # models that are loaded at the start
    batch_idle_below: float = 0.5
    batch_concurrency: int = 8
    batches_at_once: int = 4
    batch_priority: int = -1
    batch_check_every_s: float = 1.0
    max_batch_requests: int = 50_000  # OpenAI's
    max_files_bytes: int = 10 << 30  # of all files together
    max_tenant_files_bytes: int = 2 << 30
    max_tenant_files: int = 1_000
    max_tenant_batches: int = 100  # that are not over
    max_waiting: int = 10_000  # jobs

    def __post_init__(self) -> None:
        require("server.jobs.folder", self.folder, self.folder != "", "the path of a folder, or null")
        counts = ("workers", "batch_concurrency", "batches_at_once", "scrub_bytes_per_s")
        most = ("max_batch_requests", "max_waiting", "max_tenant_files", "max_tenant_batches")
        for name in (*counts, *most):
            at_least(f"server.jobs.{name}", getattr(self, name), 1)
        for name in ("max_files_bytes", "max_tenant_files_bytes"):
            at_least(f"server.jobs.{name}", getattr(self, name), 0)
        above("server.jobs.batch_check_every_s", self.batch_check_every_s, 0)
        for name in ("rescan", "health", "scrub", "rebalance", "quota_reset"):
            if getattr(self, f"{name}_every_s") is not None:
                self._within(f"{name}_every_s", SOONEST_S, YEAR_S)
        for name in ("retry_after_s", "keep_s"):
            self._within(name, 0, CENTURY_S)
        self._within("max_attempts", 1, MAX_ATTEMPTS)
        self._within("batch_priority", -MAX_PRIORITY, MAX_PRIORITY)
        self._within("batch_idle_below", 0, 1)

    def _within(self, name: str, low: float, high: float) -> None:
        value = getattr(self, name)
        require(f"server.jobs.{name}", value, low <= value <= high, f"from {low} to {high}")


@dataclass(slots=True, kw_only=True)
class ServerSettings:
    """The server, whole.

    `port` 0 is any free one; `admin_port` null: operators have no door. Without a `keys_file` nobody is asked for a
    key and everyone is the tenant that `user` names, or "default"; then the server listens to its own machine only,
    unless `allow_no_keys`. `default_max_tokens` is how long an answer may be where the client does not say. SIGTERM
    lets requests that run end for `drain_s`; new ones are told to come again.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    admin_host: str = "127.0.0.1"
    admin_port: int | None = 8001
    keys_file: str | None = None
    allow_no_keys: bool = False
    default_max_tokens: int = 512
    drain_s: float = 30.0
    limits: LimitsSettings = field(default_factory=LimitsSettings)
    audit: AuditSettings = field(default_factory=AuditSettings)
    log: LogSettings = field(default_factory=LogSettings)
    traces: TraceSettings = field(default_factory=TraceSettings)
    jobs: JobSettings = field(default_factory=JobSettings)

    def __post_init__(self) -> None:
        for name in ("host", "admin_host"):
            require(f"server.{name}", getattr(self, name), getattr(self, name) != "", "an address or a name")
        for name in ("port", "admin_port"):
            if (port := getattr(self, name)) is not None:
                require(f"server.{name}", port, 0 <= port <= MAX_PORT, f"from 0 (any free) to {MAX_PORT}")
        same = self.port != 0 and self.port == self.admin_port
        require("server.admin_port", self.admin_port, not same, "another than server.port, or null")
        require("server.keys_file", self.keys_file, self.keys_file != "", "the path of a file, or null")
        at_least("server.default_max_tokens", self.default_max_tokens, 1)
        at_least("server.drain_s", self.drain_s, 0)
        self._check_doors()

    def _check_doors(self) -> None:
        """Nobody from elsewhere comes in without a key, unless that is wanted."""
        if self.keys_file is not None or self.allow_no_keys:
            return
        allowed = "a loopback address: no server.keys_file is given (or set server.allow_no_keys)"
        require("server.host", self.host, is_loopback(self.host), allowed)
        if self.admin_port is not None:
            require("server.admin_host", self.admin_host, is_loopback(self.admin_host), allowed)


TOKEN = re.compile(r"[\w!#$%&'*+.^`|~-]+", re.ASCII)
"""The name of a header."""


def _is_url(text: str) -> bool:
    """Whether it names a host that speaks HTTP."""
    try:
        url = urlsplit(text)
        return (
            url.scheme in ("http", "https")
            and bool(url.hostname)
            and url.port != 0
            and text.isprintable()
            and " " not in text
        )
    except ValueError:  # a port that is none
        return False


def _check_file(key: str, file: str | None, max_bytes: int, keep: int) -> None:
    require(f"{key}.file", file, file != "", "the path of a file, or null")
    at_least(f"{key}.max_bytes", max_bytes, 4 * KIB)
    at_least(f"{key}.keep", keep, 0)
